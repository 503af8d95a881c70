#!/usr/bin/env python3
"""Pack the Python part of the pinned upstream sdist (native/UPSTREAM) as a wheel of its own, and print its path.

llama-cpp-python without a libllama: nothing is compiled, and the wheel serves every Python and platform. Its version is
upstream's with the local part +morphkv, so it satisfies morphkv_cpp's pin. One line is added to llama_cpp/__init__.py:
it imports python_part/_morphkv_library.py, which finds the library of an installed morphkv_cpp. So llama_cpp may be
imported before morphkv_cpp. Metadata and licence are upstream's. Standard library only.
"""

import argparse
import pathlib
import re
import tarfile

from fetch_upstream import fetch, read_pin
from wheel_file import write_wheel

FINDER = pathlib.Path(__file__).resolve().parent / "python_part" / "_morphkv_library.py"
LOCAL = "morphkv"


def read_sdist(path):
    """{name: bytes} of what the wheel needs: the package, its metadata and its licence."""
    root = read_pin()["TREE"].split("/")[0] + "/"
    files = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name[len(root) :] if member.name.startswith(root) else ""
            is_package = re.fullmatch(r"llama_cpp/(\w+/)*(\w+\.py|py\.typed)", name) is not None
            if member.isfile() and (is_package or name in ("PKG-INFO", "LICENSE.md")):
                with archive.extractfile(member) as file:
                    files[name] = file.read()
    missing = [name for name in ("llama_cpp/__init__.py", "PKG-INFO", "LICENSE.md") if name not in files]
    if missing:
        raise SystemExit(f"upstream sdist: {path} has no {' and no '.join(missing)}")
    return files


def metadata(pkg_info, version):
    """Upstream's, with the local version."""
    text, n = re.subn(rb"(?m)^Version: .+$", b"Version: " + version.encode(), pkg_info, count=1)
    if n != 1:
        raise SystemExit("upstream sdist: PKG-INFO names no version")
    return text


def pack(folder, sdist=None):
    pin = read_pin()
    version = f"{pin['VERSION']}+{LOCAL}"
    name = pin["PACKAGE"].replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = read_sdist(fetch(sdist))
    packed = {path: data for path, data in files.items() if path.startswith("llama_cpp/")}
    packed["llama_cpp/__init__.py"] = b"from . import _morphkv_library\n" + packed["llama_cpp/__init__.py"]
    packed[f"llama_cpp/{FINDER.name}"] = FINDER.read_bytes()
    packed[f"{info}/METADATA"] = metadata(files["PKG-INFO"], version)
    packed[f"{info}/licenses/LICENSE.md"] = files["LICENSE.md"]
    return write_wheel(folder, name, version, "py3-none-any", pathlib.Path(__file__).name, packed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the wheel is put")
    parser.add_argument("--sdist", help="the sdist to use, see fetch_upstream.py")
    args = parser.parse_args()
    print(pack(args.folder, args.sdist))


if __name__ == "__main__":
    main()
