#!/usr/bin/env python3
"""Find or download the pinned upstream sdist (native/UPSTREAM), check its sha256 and print its path.

Looked for in this order: the path given (--sdist or MORPHKV_UPSTREAM_SDIST), the cache folder (MORPHKV_CACHE, default
~/.cache/morphkv_cpp), the package index that pip is configured for. Standard library only: CMake runs it.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

NATIVE = pathlib.Path(__file__).resolve().parent.parent


def read_pin(path=NATIVE / "UPSTREAM"):
    """The KEY=VALUE lines of native/UPSTREAM as a dict."""
    lines = (line.strip() for line in path.read_text(encoding="ascii").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def cache_dir():
    return pathlib.Path(os.environ.get("MORPHKV_CACHE") or pathlib.Path.home() / ".cache" / "morphkv_cpp")


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def check(path, pin):
    if not path.is_file():
        raise SystemExit(f"upstream sdist: no such file: {path}")
    found = sha256_of(path)
    if found != pin["SHA256"]:
        raise SystemExit(
            f"upstream sdist: {path} is not the pinned file\n"
            f"  sha256 expected {pin['SHA256']}\n  sha256 found    {found}"
        )
    return path


def pip_download(requirement, package, folder):
    """pip's exit code. The sdist of a package by name, into a folder."""
    env = dict(os.environ)
    # pip asks the sdist for its metadata, which runs its CMake: without this it would compile llama.cpp.
    env["CMAKE_ARGS"] = "-DLLAMA_BUILD=OFF"
    # Set by a pip that is building us; a pip inside it must keep its own books.
    env.pop("PIP_BUILD_TRACKER", None)
    env.pop("PIP_REQ_TRACKER", None)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", package]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(folder), requirement]
    # stderr, because stdout carries the path to CMake.
    return subprocess.run(command, env=env, stdout=sys.stderr, check=False).returncode


def download(pin, target):
    """By name into a folder beside the target, then one rename: a broken download never stays."""
    requirement = f"{pin['PACKAGE']}=={pin['VERSION']}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        code = pip_download(requirement, pin["PACKAGE"], folder)
        if code != 0:
            raise SystemExit(
                f"upstream sdist: pip could not download {requirement} (exit {code}).\n"
                f"Without network give a copy of {pin['FILE']}: set MORPHKV_UPSTREAM_SDIST=<path>, "
                f"pass CMAKE_ARGS=-DMORPHKV_UPSTREAM_SDIST=<path>, or put it into {target.parent}"
            )
        os.replace(check(pathlib.Path(folder) / pin["FILE"], pin), target)
    return target


def fetch(sdist=None):
    """Path of the checked sdist. A given path must be right: it never falls back to another source."""
    pin = read_pin()
    given = sdist or os.environ.get("MORPHKV_UPSTREAM_SDIST")
    if given:
        return check(pathlib.Path(given).expanduser().resolve(), pin)
    cached = cache_dir() / pin["FILE"]
    return check(cached, pin) if cached.exists() else download(pin, cached)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", help="use this file instead of the cache or the package index")
    parser.add_argument("--copy-to", help="also copy it into this folder")
    args = parser.parse_args()
    path = fetch(args.sdist)
    if args.copy_to:
        pathlib.Path(args.copy_to).mkdir(parents=True, exist_ok=True)
        path = shutil.copy(path, args.copy_to)
    print(path)


if __name__ == "__main__":
    main()
