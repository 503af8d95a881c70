#!/usr/bin/env python3
"""Unpack llama.cpp from the pinned sdist into a folder, apply native/patches in order, prove that they are in.

CMake runs it at every configure. It returns at once while the pin and the patches are those of the last run; otherwise
it rewrites only the files whose content changed, so that an incremental build stays one. Standard library and git only.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile

from fetch_upstream import NATIVE, fetch, read_pin

PATCHES = NATIVE / "patches"
MANIFEST = ".morphkv-manifest.json"

# What CMake, the libraries, the tools and upstream's own tests need; models, docs and converters stay packed.
KEEP = ("CMakeLists.txt", "LICENSE", "cmake", "common", "ggml", "include", "licenses", "scripts/ui-assets.cmake")
KEEP += ("src", "tests", "tools", "vendor")

# llama-cpp-python mirrors its structs by hand.
UNTOUCHABLE = ("include/llama.h",)


def list_patches(folder=PATCHES):
    return sorted(folder.glob("*.patch"))


def run_git(args, cwd, **kwargs):
    """git that knows only cwd: in a tree nested in another repository `git apply` exits 0 and applies nothing."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env["GIT_CEILING_DIRECTORIES"] = os.path.dirname(os.path.realpath(cwd))
    env["GIT_CONFIG_NOSYSTEM"] = "1"
    env["GIT_CONFIG_GLOBAL"] = os.devnull
    env.update(kwargs.pop("env", {}))
    command = ["git", "-c", "core.autocrlf=false", "-c", "core.quotepath=off", *args]
    try:
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, **kwargs)
    except FileNotFoundError:
        raise SystemExit("git is needed to apply native/patches and was not found on PATH") from None


def extract(dest, keep=KEEP, sdist=None):
    """Write the kept files of the pristine tree under dest."""
    extract_from(fetch(sdist), read_pin()["TREE"] + "/", dest, keep)


def extract_from(sdist, prefix, dest, keep):
    """Write the kept files below prefix of a sdist under dest."""
    n_files = 0
    with tarfile.open(sdist, "r:gz") as archive:
        for member in archive:
            name = member.name[len(prefix) :] if member.name.startswith(prefix) else ""
            if not member.isfile() or ".." in name.split("/"):
                continue
            if not any(name == k or name.startswith(k + "/") for k in keep):
                continue
            path = dest / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
            n_files += 1
    if n_files == 0:
        raise SystemExit(f"upstream sdist: nothing found under {prefix}")


def added_lines(patch):
    """{file: [added line, ...]} of one patch, read without git."""
    added, name, n_left = {}, None, [0, 0]
    for line in patch.read_text(encoding="utf-8").split("\n"):
        if n_left == [0, 0]:
            if line.startswith("+++ "):
                name = line[4:].split("\t")[0]
                name = name[2:] if name.startswith("b/") else None
            elif line.startswith("@@ ") and name:
                old, new = line.split(" ")[1:3]
                n_left = [int(r.split(",")[1]) if "," in r else 1 for r in (old, new)]
            continue
        if line.startswith("+"):
            added.setdefault(name, []).append(line[1:])
        n_left[0] -= line[:1] in ("-", " ", "")
        n_left[1] -= line[:1] in ("+", " ", "")
    return added


def apply_patch(tree, patch):
    """Apply one patch and prove it: reversible, and each added line is in its file (exit codes alone have lied)."""
    result = run_git(["apply", "--whitespace=nowarn", str(patch)], tree)
    if result.returncode == 0:
        result = run_git(["apply", "--reverse", "--check", str(patch)], tree)
    if result.returncode != 0:
        raise SystemExit(f"{patch.name} does not apply to {read_pin()['FILE']}:\n{result.stderr}")
    added = added_lines(patch)
    if not added:
        raise SystemExit(f"{patch.name} adds no line: an empty or damaged patch")
    for name, lines in added.items():
        if name in UNTOUCHABLE:
            raise SystemExit(f"{patch.name} changes {name}, which must stay byte-identical")
        present = set((tree / name).read_text(encoding="utf-8").split("\n"))
        missing = [line for line in lines if line not in present]
        if missing:
            raise SystemExit(f"{patch.name} is not in {name} after git apply, first missing line:\n{missing[0]}")


def hash_tree(tree):
    """{relative path: sha256} of every file below tree."""
    hashes = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(folder, name)
            if name != MANIFEST:
                with open(path, "rb") as file:
                    digest = hashlib.sha256(file.read()).hexdigest()
                hashes[os.path.relpath(path, tree).replace(os.sep, "/")] = digest
    return hashes


def inputs_key(patches, keep):
    """Hash of all that decides the content of the unpacked tree, this script included."""
    digest = hashlib.sha256(json.dumps(keep).encode())
    for path in [NATIVE / "UPSTREAM", pathlib.Path(__file__), *patches]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def refuse_edits(dest, old):
    """Edits made in the unpacked tree would be lost or built by accident: stop instead."""
    now = hash_tree(dest)
    edited = sorted(n for n in old["files"].keys() | now.keys() if old["files"].get(n) != now.get(n))
    if edited:
        more = f" and {len(edited) - 5} more" if len(edited) > 5 else ""
        raise SystemExit(
            f"{dest} was edited after it was unpacked: {', '.join(edited[:5])}{more}.\n"
            "Edits belong in build/patchwork (see native/README.md); delete the folder above to get a clean one."
        )


def unpack(dest, patches, keep=KEEP, sdist=None):
    """Make dest the patched tree. Returns True when something was written."""
    dest = pathlib.Path(dest).resolve()
    key = inputs_key(patches, keep)
    manifest = dest / MANIFEST
    old = json.loads(manifest.read_text()) if manifest.exists() else None
    if old:
        refuse_edits(dest, old)
        if old["key"] == key:
            return False
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=dest.name + "-") as folder:
        fresh = pathlib.Path(folder)
        extract(fresh, keep, sdist)
        for patch in patches:
            apply_patch(fresh, patch)
        new = hash_tree(fresh)
        have = hash_tree(dest) if dest.exists() else {}
        # Gone while the tree is half old, half new: an interrupted run is not mistaken for an edit.
        manifest.unlink(missing_ok=True)
        for name in have.keys() - new.keys():
            (dest / name).unlink()
        for name in (n for n in new if new[n] != have.get(n)):
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(fresh / name, dest / name)
            # Newer than every object built from the old content.
            os.utime(dest / name)
    manifest.write_text(json.dumps({"key": key, "files": new}))
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dest", help="folder to fill")
    parser.add_argument("--sdist", help="the sdist to use, see fetch_upstream.py")
    parser.add_argument("--pristine", action="store_true", help="without the patches")
    parser.add_argument("--only", nargs="+", help="only these files and folders")
    args = parser.parse_args()
    patches = [] if args.pristine else list_patches()
    changed = unpack(args.dest, patches, tuple(args.only or KEEP), args.sdist)
    state = "unpacked" if changed else "unchanged"
    print(f"llama.cpp of {read_pin()['FILE']}: {state}, {len(patches)} patches applied and proved")


if __name__ == "__main__":
    main()
