"""What a move to another llama-cpp-python has done to the patches, and what is left to do by hand. Used by bump.py."""

import os
import pathlib
import tempfile

from unpack_upstream import extract_from, run_git

# What of ours follows upstream without a compiler's help.
MIRRORS = pathlib.Path(__file__).resolve().parent / "mirrors.tsv"


def read_mirrors(path=MIRRORS):
    """[(ours, what it follows, [upstream's files])]"""
    rows = (line.split("\t") for line in path.read_text(encoding="ascii").splitlines() if not line.startswith("#"))
    return [(ours, what, upstream.split(" ")) for ours, what, upstream in rows]


def read_patches(paths):
    """{name without its number: lines that the patch adds and removes}"""
    res = {}
    for path in paths:
        lines = path.read_text(encoding="utf-8").split("\n")
        res[path.name.split("-", 1)[1]] = [s for s in lines if s[:1] in ("+", "-") and s[:4] not in ("+++ ", "--- ")]
    return res


def patch_lines(before, after):
    old, new = read_patches(before), read_patches(after)
    yield f"{len(new)} patches of {len(old)} are in, proved on a fresh tree"
    for name in (name for name in old if name not in new):
        yield f"  gone, as upstream has it or you left it out: {name}; take its row out of native/README.md"
    for name in (name for name in new if name not in old):
        yield f"  new: {name}; it needs a row in native/README.md"
    for name in (name for name in new if name in old and new[name] != old[name]):
        yield f"  not the same lines as before: {name}"


def numstat(old, new):
    """What has changed between two files, either of which may be missing; None: nothing."""
    pair = [str(path) if path.exists() else os.devnull for path in (old, new)]
    if pair == [os.devnull] * 2:
        return "in neither version: native/scripts/mirrors.tsv is out of date"
    done = run_git(["diff", "--no-index", "--numstat", *pair], new.parents[1] if new.exists() else old.parents[1])
    if not done.stdout:
        return None
    n_added, n_removed = done.stdout.split("\t")[:2]
    return f"+{n_added} -{n_removed}{'' if new.exists() else ', is gone'}"


def mirror_lines(old, new, old_sdist, new_sdist):
    mirrors = read_mirrors()
    names = {name for _, _, upstream in mirrors for name in upstream}
    with tempfile.TemporaryDirectory() as folder:
        trees = []
        for pin, sdist in [(old, old_sdist), (new, new_sdist)]:
            trees.append(pathlib.Path(folder, pin["VERSION"]))
            extract_from(sdist, pin["TREE"].split("/")[0] + "/", trees[-1], tuple(names))
        changed = {name: numstat(trees[0] / name, trees[1] / name) for name in sorted(names)}
    is_any = False
    for ours, what, upstream in mirrors:
        hits = [name for name in upstream if changed[name]]
        if hits and not is_any:
            yield "Read again by hand, upstream has changed what these follow:"
            is_any = True
        if hits:
            yield f"  {ours}: {what}"
            yield from (f"      {name}  {changed[name]}" for name in hits)
    if not is_any:
        yield "Upstream has changed nothing of what ours follows by hand (native/scripts/mirrors.tsv)"


def report(work, old, new, old_sdist, new_sdist, before, after):
    """Lines of text. before, after: the patches' files."""
    names = f"{old['PACKAGE']} {old['VERSION']} -> {new['VERSION']}"
    return [
        f"{names}, llama.cpp {old['COMMIT'][:9]} -> {new['COMMIT'][:9]}",
        *patch_lines(before, after),
        "",
        *mirror_lines(old, new, old_sdist, new_sdist),
        f"  `git -C {work} diff pristine-{old['VERSION']} pristine -- FILE` shows those below vendor/llama.cpp;",
        f"  those of llama_cpp are in {old_sdist} and {new_sdist}",
        "",
        "Left to do:",
        "  1. `make venv`: does it compile? Edit patches in build/patchwork, then `make refresh-patches`",
        "  2. `make archs`: has morphkv_cpp/architectures.tsv changed? New ones need a word in native/README.md",
        "  3. `make test test-apply test-sanitize test-upstream test-upstream-server check`, and test-vulkan where it",
        "     runs. New tests of upstream's are named in tests/upstream/test_cpp.py and server_lists.py",
        "  4. a line in CHANGELOG.md, and one commit that holds nothing else",
    ]
