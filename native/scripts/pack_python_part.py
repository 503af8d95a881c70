#!/usr/bin/env python3
"""Pack the Python part of the pinned upstream sdist (native/UPSTREAM) as a wheel of its own, and print its path.

llama-cpp-python without a libllama: nothing is compiled, and the wheel serves every Python and platform. Its version is
upstream's with the local part +morphkv, so it satisfies morphkv_cpp's pin. One line is added to llama_cpp/__init__.py:
it imports python_part/_morphkv_library.py, which finds the library of an installed morphkv_cpp. So llama_cpp may be
imported before morphkv_cpp. Metadata and licence are upstream's. Standard library only.
"""

import argparse
import base64
import hashlib
import pathlib
import re
import tarfile
import zipfile

from fetch_upstream import fetch, read_pin

FINDER = pathlib.Path(__file__).resolve().parent / "python_part" / "_morphkv_library.py"
LOCAL = "morphkv"
# Of 1980, the first that a zip can hold: the same files make the same wheel.
TIME = (1980, 1, 1, 0, 0, 0)


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


def wheel_files(files, version, info):
    wheel = f"Wheel-Version: 1.0\nGenerator: {pathlib.Path(__file__).name}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    packed = {name: data for name, data in files.items() if name.startswith("llama_cpp/")}
    packed["llama_cpp/__init__.py"] = b"from . import _morphkv_library\n" + packed["llama_cpp/__init__.py"]
    packed[f"llama_cpp/{FINDER.name}"] = FINDER.read_bytes()
    packed[f"{info}/METADATA"] = metadata(files["PKG-INFO"], version)
    packed[f"{info}/WHEEL"] = wheel.encode()
    packed[f"{info}/licenses/LICENSE.md"] = files["LICENSE.md"]
    packed[f"{info}/RECORD"] = record(packed, f"{info}/RECORD")
    return packed


def record(files, name):
    rows = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}")
    return "\n".join([*rows, f"{name},,", ""]).encode()


def pack(folder, sdist=None):
    pin = read_pin()
    version = f"{pin['VERSION']}+{LOCAL}"
    stem = f"{pin['PACKAGE'].replace('-', '_')}-{version}"
    files = wheel_files(read_sdist(fetch(sdist)), version, f"{stem}.dist-info")
    target = pathlib.Path(folder) / f"{stem}-py3-none-any.whl"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, TIME)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            archive.writestr(info, data)
    partial.replace(target)
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the wheel is put")
    parser.add_argument("--sdist", help="the sdist to use, see fetch_upstream.py")
    args = parser.parse_args()
    print(pack(args.folder, args.sdist))


if __name__ == "__main__":
    main()
