#!/usr/bin/env python3
"""A compiler launcher for nvcc (CMAKE_CUDA_COMPILER_LAUNCHER): compiles what launches.py runs, and else empty files.

Kernels never run there, so device code is not optimized. What is left out and called after all ends the process with
its name (fake_cuda.cpp): then its file belongs below, and its object file has to be removed from build/cuda.
"""

from __future__ import annotations

import os
import re
import sys

KEPT = """ggml-cuda argsort binbcast clamp concat convert cpy fattn fwht getrows mmf mmq mmvf mmvq norm pool2d quantize
rope scale set-rows softcap softmax sumrows unary""".split()
# attention over f16 K and V of heads of 128 in groups of 4, and of compressed keys; products with 4 tokens
KEPT_INSTANCES = [
    r"fattn-vec-instance-f16-f16",
    r"fattn-mma-f16-instance-ncols1_\d+-ncols2_(4|16)$",
    r"mmf-instance-ncols_4$",
]


def is_kept(path: str) -> bool:
    folder, name = os.path.split(os.path.splitext(path)[0])
    if os.path.basename(folder) == "template-instances":
        return any(re.match(each, name) for each in KEPT_INSTANCES)
    return name in KEPT


def main() -> None:
    arguments = [sys.argv[1], "-Ofc=max", *sys.argv[2:]]
    for i, each in enumerate(arguments):
        if each.endswith(".cu") and not is_kept(each):
            arguments[i] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "empty.cu")
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main()
