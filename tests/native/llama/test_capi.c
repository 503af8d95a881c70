// The header is C11, and bad arguments come back as a status with the rule and the value.

#include "morphkv.h"
#include "support/check.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static void refused(morphkv_status status, morphkv_status expected, const char * sentence) {
    if (status != expected || !strstr(morphkv_last_error(), sentence)) {
        fprintf(stderr, "expected status %d with '%s', got %d with '%s'\n", (int) expected, sentence, (int) status,
                morphkv_last_error());
        exit(1);
    }
}

static void test_versions(void) {
    CHECK(morphkv_abi_version() == MORPHKV_ABI_VERSION);
    CHECK(strlen(morphkv_version()) > 0);
    CHECK(strlen(morphkv_upstream_version()) > 0);
}

static void test_defaults_are_valid(void) {
    morphkv_params p = morphkv_params_default();
    CHECK(p.size == sizeof(p));
    CHECK(morphkv_params_check(&p) == MORPHKV_STATUS_OK);
    CHECK(strcmp(morphkv_last_error(), "") == 0);
}

#define REFUSED_WITH(field, value, sentence)                                                                           \
    do {                                                                                                               \
        morphkv_params p = morphkv_params_default();                                                                   \
        p.field          = (value);                                                                                    \
        refused(morphkv_params_check(&p), MORPHKV_STATUS_INVALID, (sentence));                                         \
    } while (0)

static void test_params_outside_of_their_range_are_refused(void) {
    refused(morphkv_params_check(NULL), MORPHKV_STATUS_INVALID, "params must not be NULL");
    REFUSED_WITH(size, 4, "params.size must be");
    REFUSED_WITH(capacity, 0, "capacity must be in");
    REFUSED_WITH(capacity, 36, "capacity must exceed keep + window, got capacity=36 with keep=4 and window=32");
    REFUSED_WITH(window, 0, "window must be in");
    REFUSED_WITH(interval, 0, "interval must be in");
    REFUSED_WITH(keep, -1, "keep must be in");
    REFUSED_WITH(prompt_room, -1, "prompt_room must be in");
    REFUSED_WITH(votes, 33, "votes must be in 0..32, got 33");
    REFUSED_WITH(fusion, 2, "fusion must be in");
    REFUSED_WITH(policy, 5, "policy must be in");
    REFUSED_WITH(protect, 1000, "capacity must exceed keep + window + protect, got capacity=1024");
    REFUSED_WITH(decay, 1.0f, "decay must be in [0, 1)");
    REFUSED_WITH(decay, NAN, "decay must be in [0, 1)");
    REFUSED_WITH(capacity, 1 << 30, "capacity must be in");
}

static void test_cells_are_known_before_a_context_is(void) {
    morphkv_params p = morphkv_params_default();
    int32_t        n = 0;
    CHECK(morphkv_params_cells(&p, &n) == MORPHKV_STATUS_OK && n == 2048);
    p.prompt_room = 0;  // the interval's 128 stay, and cells come in 256
    CHECK(morphkv_params_cells(&p, &n) == MORPHKV_STATUS_OK && n == 1280);
    p.window = 0;
    refused(morphkv_params_cells(&p, &n), MORPHKV_STATUS_INVALID, "window must be in");
    refused(morphkv_params_cells(&p, NULL), MORPHKV_STATUS_INVALID, "n_cells must not be NULL");
}

static void test_null_is_refused(void) {
    struct llama_context * ctx = (struct llama_context *) 1;
    morphkv_params         p   = morphkv_params_default();
    morphkv_stats          stats;
    int32_t                n;
    refused(morphkv_context_create(NULL, NULL, &p, &ctx), MORPHKV_STATUS_INVALID, "model must not be NULL");
    CHECK(ctx == NULL);
    refused(morphkv_context_create(NULL, NULL, &p, NULL), MORPHKV_STATUS_INVALID, "out must not be NULL");
    refused(morphkv_stats_get(NULL, 0, &stats), MORPHKV_STATUS_INVALID, "ctx must not be NULL");
    refused(morphkv_context_check(NULL), MORPHKV_STATUS_INVALID, "ctx must not be NULL");
    refused(morphkv_retained_shape(NULL, 0, &n, &n), MORPHKV_STATUS_INVALID, "ctx must not be NULL");
    CHECK(morphkv_kv_bytes(NULL) == 0);
    CHECK(morphkv_params_set_next(NULL) == MORPHKV_STATUS_OK);
}

static void test_devices(void) {
    bool has_cpu = false;
    CHECK(morphkv_device_count() >= 1);
    for (int32_t i = 0; i < morphkv_device_count(); ++i) {
        morphkv_device device = { .size = sizeof(device) };
        CHECK(morphkv_device_get(i, &device) == MORPHKV_STATUS_OK);
        CHECK(strlen(device.name) > 0 && strlen(device.backend) > 0);
        has_cpu = has_cpu || strcmp(device.backend, "CPU") == 0;
    }
    CHECK(has_cpu);
    morphkv_device device = { .size = 1 };
    refused(morphkv_device_get(0, &device), MORPHKV_STATUS_INVALID, "out.size must be");
    refused(morphkv_device_get(-1, &device), MORPHKV_STATUS_INVALID, "device must be in");
}

static void test_devices_of_servers_need_names(void) {
    void * devices[1];
    refused(morphkv_rpc_devices(NULL, devices), MORPHKV_STATUS_INVALID, "servers");
    refused(morphkv_rpc_devices("a:1", NULL), MORPHKV_STATUS_INVALID, "devices");
}

static void test_a_prompt_is_checked(void) {
    morphkv_recall_params params = morphkv_recall_params_default();
    morphkv_prompt        prompt = morphkv_prompt_begin(3, 8);
    CHECK(prompt.size == sizeof(prompt) && prompt.recalled.size == sizeof(prompt.recalled));
    CHECK(prompt.n_past == 3 && prompt.n_tokens == 8 && prompt.n_redo == 128);
    CHECK(prompt.stage == MORPHKV_PROMPT_STAGE_FIRST);
    refused(morphkv_prompt_next(NULL, 0, &params, &prompt, 3), MORPHKV_STATUS_INVALID, "ctx must not be NULL");
}

int main(void) {
    test_versions();
    test_defaults_are_valid();
    test_devices_of_servers_need_names();
    test_params_outside_of_their_range_are_refused();
    test_cells_are_known_before_a_context_is();
    test_null_is_refused();
    test_a_prompt_is_checked();
    test_devices();
    return 0;
}
