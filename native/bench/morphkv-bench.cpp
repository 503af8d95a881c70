#include "morphkv-bench.h"

#include "arg.h"
#include "common.h"
#include "morphkv-common.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

static common_params g_params;

static bool has(const std::vector<const char *> & names, const std::string & name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

bool morphkv_bench_arg(int argc, char ** argv, int & i) {
    const std::string name = argv[i];
    auto              args = morphkv_common_args(common_params());
    for (auto & arg : args) {
        const bool is_positive = has(arg.args, name);
        // a server alone has slots to keep and recall for
        if ((!is_positive && !has(arg.args_neg, name)) || !arg.in_example(LLAMA_EXAMPLE_COMMON)) {
            continue;
        }
        if (arg.handler_bool) {
            arg.handler_bool(g_params, is_positive);
            return true;
        }
        if (i + 1 >= argc) {
            throw std::invalid_argument(name + " needs a value");
        }
        const std::string value = argv[++i];
        if (arg.handler_int) {
            arg.handler_int(g_params, std::stoi(value));
        } else {
            arg.handler_string(g_params, value);
        }
        return true;
    }
    return false;
}

void morphkv_bench_usage() {
    printf("\n  --morphkv and "
           "--morphkv-capacity|window|votes|prompt-room|interval|fusion|policy|protect|decay|rope-limit\n"
           "                                                    a KV cache of constant size, in every test\n");
}

void morphkv_bench_before_context(const llama_model * model, llama_context_params & cparams) {
    try {
        morphkv_common_args_check(g_params);
    } catch (const std::invalid_argument & err) {
        fprintf(stderr, "%s\n", err.what());
        exit(1);
    }
    if (g_params.morphkv.enabled) {
        cparams.kv_unified = false;
    }
    morphkv_common_before_context(g_params, model, cparams);
}

llama_context * morphkv_bench_after_context(llama_context * ctx) {
    return morphkv_common_after_context(g_params, ctx);
}
