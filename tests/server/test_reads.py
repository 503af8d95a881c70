"""How often a server looks at its slots: at one that writes before and behind each token, at others when asked."""

from support import preload
from support.server_process import TIGHT
from support.server_process import some_tokens as tokens

N_SLOTS = 8

COUNTING = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

struct llama_context;
typedef int (*getter)(struct llama_context *, int, void *);
static long n_calls;

int morphkv_stats_get(struct llama_context * ctx, int seq_id, void * out) {
    __atomic_fetch_add(&n_calls, 1, __ATOMIC_RELAXED);
    return ((getter) dlsym(RTLD_NEXT, "morphkv_stats_get"))(ctx, seq_id, out);
}

__attribute__((destructor)) static void tell(void) {
    FILE * file = fopen(getenv("N_CALLS"), "w");
    fprintf(file, "%ld", n_calls);
    fclose(file);
}
"""


def test_a_token_costs_two_looks_at_its_own_slot(start_server, tiny_llama, tmp_path):
    env = {"LD_PRELOAD": str(preload.build(tmp_path, "count", COUNTING)), "N_CALLS": str(tmp_path / "n")}

    def n_calls(n_tokens: int) -> int:
        server = start_server(tiny_llama(), *TIGHT, "-np", N_SLOTS, env=env)
        server.complete(tokens(20), n_tokens)
        server.stop()
        return int((tmp_path / "n").read_text())

    # health and a start cost the same; what is asked while a task comes may differ by one look at all
    assert n_calls(300) - n_calls(100) <= 200 * 2 + 2 * N_SLOTS
