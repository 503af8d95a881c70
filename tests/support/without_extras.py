"""`python without_extras.py ARGUMENTS` is `morphkv ARGUMENTS` where no extra is installed."""

import sys

EXTRAS = (
    "gguf",
    "httpx",
    "huggingface_hub",
    "kvpress",
    "matplotlib",
    "psutil",
    "rdata",
    "scipy",
    "torch",
    "transformers",
)

if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(EXTRAS))  # None: an import fails
    from morphkv_cpp.cli.app import main

    main(sys.argv[1:])
