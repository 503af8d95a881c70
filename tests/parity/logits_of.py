"""Program: decode tokens with one libllama and write the logits. A process can load one libllama only.

usage: logits_of.py stock|off|on MODEL TYPE N_DECODE OUT.npy < tokens, one a line
  stock  llama_cpp as LLAMA_CPP_LIB_PATH says; off, on: morphkv_cpp without and with MorphKV
"""

import sys

import numpy as np

MORPHKV = {"capacity": 512, "window": 32, "interval": 64, "prompt_room": 256, "layers": "equal"}


def main() -> None:
    arm, model, cache_type, n_decode, out = sys.argv[1:]
    prompt = [int(line) for line in sys.stdin]
    options = {"n_ctx": 2048, "n_ubatch": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    options |= {"flash_attn": True, "type_k": int(cache_type), "type_v": int(cache_type)}
    if arm == "stock":
        import llama_cpp

        llm = llama_cpp.Llama(model, **options)
    else:
        import morphkv_cpp

        morphkv = morphkv_cpp.MorphKV(**MORPHKV) if arm == "on" else None
        llm = morphkv_cpp.Llama(model, morphkv=morphkv, **options)
        import llama_cpp

    rows = []
    batch = prompt
    for _ in range(int(n_decode) + 1):
        llm.eval(batch)
        pointer = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        rows.append(np.ctypeslib.as_array(pointer, shape=(llm.n_vocab(),)).copy())
        batch = [int(rows[-1].argmax())]
    if arm == "on":
        assert llm.cache_stats().n_evictions == 0, "the comparison is for the time before the first eviction"
    np.save(out, np.stack(rows))
    llm.close()


if __name__ == "__main__":
    main()
