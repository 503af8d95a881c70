"""Where llama_cpp finds its library: in morphkv_cpp, as this llama-cpp-python was packed without one.

Imported before all else of llama_cpp. morphkv_cpp, imported first, has set the variables itself.
"""

import importlib.util
import os
import pathlib
import sys


def _find_folder():
    """The folder of morphkv_cpp's libraries; the package is found, not imported."""
    spec = importlib.util.find_spec("morphkv_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "this llama-cpp-python has no library of its own, and morphkv_cpp, which brings one, is not installed: "
            "install it, or set LLAMA_CPP_LIB_PATH to the folder of a libllama",
            name="llama_cpp",
        )
    # as in morphkv_cpp/bridge/library.py; of an editable install one folder is the sources'
    packages = [pathlib.Path(package) for package in spec.submodule_search_locations]
    for package in packages:
        folder = package / ("bin" if sys.platform == "win32" else "lib")
        if any(folder.glob("*llama.*")):
            return folder
    raise ImportError(
        f"this llama-cpp-python has no library of its own, and morphkv_cpp was found in {packages[0]}, without its "
        "libraries: import morphkv_cpp first, in another folder if that is its source",
        name="llama_cpp",
    )


if "LLAMA_CPP_LIB_PATH" not in os.environ:
    _folder = _find_folder()
    os.environ["LLAMA_CPP_LIB_PATH"] = str(_folder)
    if any(_folder.glob("*mtmd.*")):
        os.environ.setdefault("MTMD_CPP_LIB", str(_folder))
