// MorphKV in llama-bench, which has a parser of its own. Without --morphkv each function returns before it touches anything.
#pragma once

struct llama_context;
struct llama_context_params;
struct llama_model;

// Takes argv[i], and i on to its value, if it is one of the common --morphkv options.
bool morphkv_bench_arg(int argc, char ** argv, int & i);
void morphkv_bench_usage();

// Around llama_init_from_model().
void            morphkv_bench_before_context(const llama_model * model, llama_context_params & cparams);
llama_context * morphkv_bench_after_context(llama_context * ctx);
