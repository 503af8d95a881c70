// Gives MorphKV to the contexts of programs that know nothing of it. Linux:
//   LD_PRELOAD=libmorphkv-preload.so MORPHKV_TEST_PARAMS=capacity=64,window=8,... program
// Reports to stderr what became of each context: the tests that use it read these lines.
#define _GNU_SOURCE  // RTLD_NEXT

#include "llama.h"
#include "morphkv.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct llama_context * (*init_function)(struct llama_model *, struct llama_context_params);
typedef void (*free_function)(struct llama_context *);

static void stop(const char * why, const char * what) {
    fprintf(stderr, "morphkv-preload: %s: %s\n", why, what);
    abort();
}

// The definition behind ours. void * to function pointer: POSIX allows it, ISO C has no cast for it.
static void next_function(const char * name, void * function, size_t size) {
    void * symbol = dlsym(RTLD_NEXT, name);
    if (symbol == NULL) {
        stop("not found behind the preload", name);
    }
    memcpy(function, &symbol, size);
}

static int32_t * find_field(morphkv_params * params, const char * name, size_t length) {
    const struct {
        const char * name;
        int32_t *    value;
    } fields[] = {
        { "capacity", &params->capacity }, { "window", &params->window },           { "interval", &params->interval },
        { "keep", &params->keep },         { "prompt_room", &params->prompt_room },
    };
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); ++i) {
        if (strlen(fields[i].name) == length && strncmp(fields[i].name, name, length) == 0) {
            return fields[i].value;
        }
    }
    return NULL;
}

// "name=number,name=number": a typing error must not test something else.
static morphkv_params read_params(void) {
    morphkv_params params = morphkv_params_default();
    const char *   text   = getenv("MORPHKV_TEST_PARAMS");
    if (text == NULL) {
        stop("must be set", "MORPHKV_TEST_PARAMS");
    }
    for (const char * at = text; *at != '\0';) {
        const size_t length = strcspn(at, "=");
        int32_t *    value  = find_field(&params, at, length);
        if (value == NULL || at[length] != '=') {
            stop("MORPHKV_TEST_PARAMS has no such field", at);
        }
        char * end = NULL;
        *value     = (int32_t) strtol(at + length + 1, &end, 10);
        if (end == at + length + 1 || (*end != ',' && *end != '\0')) {
            stop("MORPHKV_TEST_PARAMS wants numbers", at);
        }
        at = *end == ',' ? end + 1 : end;
    }
    return params;
}

struct llama_context * llama_init_from_model(struct llama_model * model, struct llama_context_params cparams) {
    init_function init;
    next_function("llama_init_from_model", &init, sizeof(init));

    // What MorphKV requires of a context, and programs choose otherwise.
    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    cparams.kv_unified      = false;

    const morphkv_params params = read_params();
    if (morphkv_params_set_next(&params) != MORPHKV_STATUS_OK) {
        stop("MORPHKV_TEST_PARAMS", morphkv_last_error());
    }
    struct llama_context * ctx = init(model, cparams);

    morphkv_stats stats = { .size = sizeof(stats) };
    if (ctx == NULL) {
        fprintf(stderr, "morphkv-preload: refused: %s\n", morphkv_last_error());
    } else if (morphkv_stats_get(ctx, 0, &stats) != MORPHKV_STATUS_OK) {
        stop("a context without MorphKV", morphkv_last_error());
    } else {
        fprintf(stderr, "morphkv-preload: created: n_seq=%" PRId32 " n_limit=%" PRId32 "\n", stats.n_seq_max,
                stats.n_limit);
    }
    return ctx;
}

void llama_free(struct llama_context * ctx) {
    free_function free_context;
    next_function("llama_free", &free_context, sizeof(free_context));

    morphkv_stats stats = { .size = sizeof(stats) };
    if (ctx != NULL && morphkv_stats_get(ctx, 0, &stats) == MORPHKV_STATUS_OK) {
        int64_t n_evictions = 0;
        for (int32_t seq_id = 0; seq_id < stats.n_seq_max; ++seq_id) {
            morphkv_stats_get(ctx, seq_id, &stats);
            n_evictions += stats.n_evictions;
        }
        fprintf(stderr, "morphkv-preload: freed: n_evictions=%" PRId64 "\n", n_evictions);
    }
    free_context(ctx);
}
