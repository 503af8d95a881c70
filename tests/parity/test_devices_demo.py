"""10,000 tokens of a real model, on the CPU and over two RPC servers: the same tokens are kept."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from morphkv_cpp import Llama, MorphKV

N_TOKENS = 10_000
N_LAYER = 30
CONFIG = MorphKV(capacity=512, window=32, interval=128, prompt_room=0)
# A near-tie that falls the other way is carried on: both sides' later texts are the same, their caches not quite.
OTHER_SHARE = 0.001


@pytest.mark.slow
@pytest.mark.demo
def test_the_demo_model_keeps_the_same_tokens_over_two_servers(demo_model, rpc_servers):
    options = {"morphkv": CONFIG, "n_threads": 1, "n_threads_batch": 1, "seed": 1, "verbose": False}
    names = [server.name for server in rpc_servers]
    here = Llama(demo_model, **options)
    there = Llama(demo_model, rpc_servers=names, tensor_split=[1, 1], **options)
    n_cuts = n_sets = n_other_sets = n_kept = n_other = 0
    with closing(here), closing(there):
        token = here.token_bos()
        for _ in range(N_TOKENS):
            here.eval([token])
            there.eval([token])
            if here.cache_stats().n_evictions > n_cuts:
                n_cuts += 1
                for layer in range(N_LAYER):
                    for kept_here, kept_there in zip(here.retained(layer), there.retained(layer)):
                        n_here_alone = len(np.setdiff1d(kept_here, kept_there))
                        n_sets += 1
                        n_other_sets += n_here_alone > 0
                        n_kept += len(kept_here)
                        n_other += n_here_alone
            # the text is what the model writes here
            token = here.sample(temp=1.0, top_k=0, top_p=1.0, min_p=0.02)
        assert there.cache_stats().n_evictions == n_cuts
        assert there.cache_stats().n_rebases == here.cache_stats().n_rebases > 0
    print(f"{n_cuts} cuts, {n_sets} sets, {n_other_sets} differ; {n_kept} tokens kept, {n_other} of them here alone")
    assert n_cuts > 70
    assert n_other <= OTHER_SHARE * n_kept
