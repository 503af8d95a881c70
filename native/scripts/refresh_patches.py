#!/usr/bin/env python3
"""Export native/patches from build/patchwork, a git repository with the pristine tree and one commit per patch.

  --init    make build/patchwork from the stored patches (edit there: amend, add or rebase commits), then stop
  (none)    write native/patches from its commits; make it first when it is not there
  --check   build it afresh in a temporary folder, export, compare with the stored patches byte by byte

The export depends on nothing but content: author, date, hashes of commits and git's version are kept out of the files.
"""

import argparse
import difflib
import hashlib
import pathlib
import re
import shutil
import sys
import tempfile

from fetch_upstream import NATIVE
from unpack_upstream import PATCHES, UNTOUCHABLE, extract, list_patches, run_git

WORK = NATIVE.parent / "build" / "patchwork"
# In a patchwork's .git while bump.py moves it to another upstream version.
BUMP = "morphkv-bump.json"
AUTHOR = ("morphkv_cpp", "morphkv@localhost")
DATE = "Thu, 1 Jan 2026 00:00:00 +0000"
IDENTITY = {"GIT_AUTHOR_NAME": AUTHOR[0], "GIT_AUTHOR_EMAIL": AUTHOR[1], "GIT_AUTHOR_DATE": DATE}
IDENTITY.update({key.replace("AUTHOR", "COMMITTER"): value for key, value in IDENTITY.items()})


def git(args, cwd):
    done = run_git(args, cwd, env=IDENTITY)
    if done.returncode != 0:
        raise SystemExit(f"git {' '.join(args)} in {cwd} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def stored_key():
    """Hash of the pin and the stored patches: what a patchwork was made from."""
    digest = hashlib.sha256()
    for path in [NATIVE / "UPSTREAM", *list_patches()]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def make_patchwork(work, sdist):
    extract(work, sdist=sdist)
    git(["init", "--quiet", "--initial-branch=patches"], work)
    # Developers commit here with their own name, or with this one when they have none.
    git(["config", "user.name", AUTHOR[0]], work)
    git(["config", "user.email", AUTHOR[1]], work)
    git(["add", "--all", "--force"], work)
    git(["commit", "--quiet", "--message=pristine"], work)
    git(["tag", "pristine"], work)
    if list_patches():
        git(["am", "--quiet", "--keep", "--keep-cr", *map(str, list_patches())], work)
    (work / ".git" / "morphkv-key").write_text(stored_key())


def export(work, target):
    """Write one file per commit after `pristine` into target, named NNNN-<subject>.patch by git."""
    stable = ["--keep-subject", "--zero-commit", "--no-signature", "--full-index", "--no-renames", "--unified=3"]
    stable += ["--diff-algorithm=myers", "--no-attach", "--no-numbered", "--filename-max-length=64", "-p"]
    git(["format-patch", *stable, "--output-directory", str(target), "pristine..HEAD"], work)
    for path in list_patches(target):
        text = path.read_bytes().decode("utf-8")
        text = re.sub(r"(?m)^From: .*$", "From: {} <{}>".format(*AUTHOR), text, count=1)
        text = re.sub(r"(?m)^Date: .*$", f"Date: {DATE}", text, count=1)
        for name in UNTOUCHABLE:
            if f"\n+++ b/{name}\n" in text:
                raise SystemExit(f"{path.name} changes {name}, which must stay byte-identical")
        path.write_bytes(text.encode("utf-8"))


def check(sdist):
    with tempfile.TemporaryDirectory() as folder:
        work, target = pathlib.Path(folder, "work"), pathlib.Path(folder, "patches")
        work.mkdir()
        target.mkdir()
        make_patchwork(work, sdist)
        export(work, target)
        stored = {path.name: path.read_bytes() for path in list_patches()}
        exported = {path.name: path.read_bytes() for path in list_patches(target)}
    for name in sorted(stored.keys() | exported.keys()):
        old, new = (
            side.get(name, b"").decode("utf-8", "replace").splitlines(keepends=True) for side in (stored, exported)
        )
        sys.stdout.writelines(difflib.unified_diff(old, new, f"stored/{name}", f"exported/{name}"))
    if stored != exported:
        raise SystemExit("native/patches differ from their re-export: run `make refresh-patches`")
    print(f"{len(stored)} patches equal their re-export")


def refresh(work, sdist):
    if not (work / ".git").exists():
        init(work, sdist)
    if (work / ".git" / BUMP).exists():
        raise SystemExit(f"{work} is on its way to another upstream version: end that with `make bump`, or delete it")
    if git(["status", "--porcelain"], work):
        raise SystemExit(f"{work} has uncommitted changes: commit or amend them first")
    key = work / ".git" / "morphkv-key"
    if key.read_text() != stored_key():
        raise SystemExit(
            f"native/patches or native/UPSTREAM changed since {work} was made, and an export would undo that.\n"
            f"Save your commits (git format-patch pristine), delete the folder, run again, apply them (git am)."
        )
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder)
        export(work, target)
        for path in list_patches():
            path.unlink()
        for path in list_patches(target):
            shutil.copy(path, PATCHES / path.name)
            print(f"native/patches/{path.name}")
    key.write_text(stored_key())


def init(work, sdist):
    if work.exists():
        raise SystemExit(f"{work} is there already: delete it to start again from native/patches")
    work.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work.parent, prefix=".patchwork-") as folder:
        fresh = pathlib.Path(folder, "tree")
        fresh.mkdir()
        make_patchwork(fresh, sdist)
        fresh.rename(work)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", help="the sdist to use, see fetch_upstream.py")
    parser.add_argument("--work", type=pathlib.Path, default=WORK, help="the patchwork (default build/patchwork)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--init", action="store_true", help="only make the patchwork folder")
    mode.add_argument("--check", action="store_true", help="compare the stored patches with a re-export")
    args = parser.parse_args()
    PATCHES.mkdir(exist_ok=True)
    if args.check:
        check(args.sdist)
    elif args.init:
        init(args.work.resolve(), args.sdist)
        print(f"{args.work}: one commit per patch on top of the tag pristine")
    else:
        refresh(args.work.resolve(), args.sdist)


if __name__ == "__main__":
    main()
