#!/usr/bin/env python3
"""Move to another llama-cpp-python: fetch its sdist, rebase the patches onto its llama.cpp, write the pin.

Only build/patchwork changes until every patch is in; then the pin and the patches are written, all of them or none. A
patch that conflicts stops the rebase there, as git does. The same command goes on, and says at the end what is left.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import tarfile
import tempfile

from bump_report import report
from fetch_upstream import NATIVE, cache_dir, fetch, pip_download, read_pin, sha256_of
from refresh_patches import BUMP, IDENTITY, WORK, export, git, make_patchwork, stored_key
from unpack_upstream import KEEP, PATCHES, apply_patch, extract_from, list_patches, run_git

ROOT = NATIVE.parent
PIN = NATIVE / "UPSTREAM"
# SOURCES_ID is git's id of these.
SOURCES = ("common", "ggml/include", "include", "src")


def find_sdist(package, version, sdist):
    """The file, in the cache folder, where CMake looks for it. What pip downloads it has compared with the index."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".download-") as folder:
        if sdist:
            if not sdist.is_file():
                raise SystemExit(f"bump: no such file: {sdist}")
            path = pathlib.Path(shutil.copy(sdist, folder))
        elif (code := pip_download(f"{package}=={version}", package, folder)) != 0:
            raise SystemExit(f"bump: pip could not download {package}=={version} (exit {code})")
        else:
            (path,) = pathlib.Path(folder).iterdir()
        if not path.name.endswith(f"-{version}.tar.gz"):
            raise SystemExit(f"bump: a sdist of {version} is named NAME-{version}.tar.gz, got {path.name}")
        os.replace(path, cache_dir() / path.name)
    return cache_dir() / path.name


def commit_of(sdist, root, version, given):
    """llama.cpp's commit: the submodule's HEAD in the sdist. Its CHANGELOG.md, where it names one, must agree."""
    found = {f"{root}/.git/modules/vendor/llama.cpp/HEAD": "", f"{root}/CHANGELOG.md": ""}
    with tarfile.open(sdist, "r:gz") as archive:
        for member in archive:
            if member.name in found:
                with archive.extractfile(member) as file:
                    found[member.name] = file.read().decode("utf-8").strip()
    head, changelog = found.values()
    commit = given or head
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise SystemExit(f"bump: a commit of llama.cpp has 40 hex digits, got {commit!r}: give it with --commit")
    section = re.search(rf"(?ms)^## \[{re.escape(version)}\]$(.*?)(?=^## |\Z)", changelog)
    told = re.search(r"llama\.cpp@([0-9a-f]+)", section[1]) if section else None
    if told and not commit.startswith(told[1]):
        raise SystemExit(f"bump: the commit is {commit}, but the sdist's CHANGELOG.md says {told[1]}")
    return commit


def sources_id(sdist, tree):
    """As apply.sh computes it."""
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        extract_from(sdist, tree + "/", work, SOURCES)
        git(["init", "--quiet"], work)
        git(["config", "core.fileMode", "false"], work)
        git(["add", *(name for name in SOURCES if (work / name).exists())], work)
        return git(["write-tree"], work).strip()


def read_new_pin(package, version, sdist, commit):
    root = sdist.name.removesuffix(".tar.gz")
    pin = {"PACKAGE": package, "VERSION": version, "FILE": sdist.name, "SHA256": sha256_of(sdist)}
    pin["TREE"] = f"{root}/vendor/llama.cpp"
    pin["COMMIT"] = commit_of(sdist, root, version, commit)
    return {**pin, "SOURCES_ID": sources_id(sdist, pin["TREE"])}


def pinned_files(old, new):
    """{path: new content} of the files where the pin stands, patches apart."""
    text = PIN.read_text(encoding="ascii")
    for key, value in new.items():
        text = re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text)
    res = {PIN: text}
    places = [("pyproject.toml", "VERSION", '"{PACKAGE}=={VERSION}"'), ("README.md", "COMMIT", "{COMMIT}")]
    for name, key, form in places:
        text = (ROOT / name).read_text(encoding="utf-8")
        if text.count(form.format(**old)) != 1:
            raise SystemExit(f"bump: {name} must hold {form.format(**old)} once, as native/UPSTREAM's {key} says")
        res[ROOT / name] = text.replace(form.format(**old), form.format(**new))
    return {path: text.encode() for path, text in res.items()}


def replace_all(files):
    """{path: content, or None for a file that goes}: all of them, or after an error or Ctrl-C none."""
    before = {path: path.read_bytes() if path.exists() else None for path in files}
    try:
        for path, data in files.items():
            put(path, data)
    except BaseException:
        for path, data in before.items():
            put(path, data)
        raise


def put(path, data):
    if data is None:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def start(work, old, new, sdist):
    """build/patchwork with the patches on the old tree, and the new tree as the tag `pristine`."""
    work.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work.parent, prefix=".patchwork-") as folder:
        fresh = pathlib.Path(folder, "tree")
        fresh.mkdir()
        make_patchwork(fresh, None)
        git(["tag", f"pristine-{old['VERSION']}", "pristine"], fresh)
        git(["checkout", "--quiet", "--detach", "pristine"], fresh)
        git(["rm", "-r", "--quiet", "."], fresh)
        extract_from(sdist, new["TREE"] + "/", fresh, KEEP)
        git(["add", "--all", "--force"], fresh)
        git(["commit", "--quiet", "--allow-empty", "--message=pristine"], fresh)
        git(["tag", "--force", "pristine"], fresh)
        git(["checkout", "--quiet", "patches"], fresh)
        state = {"old": old, "new": new, "sdist": str(sdist), "key": stored_key()}
        (fresh / ".git" / BUMP).write_text(json.dumps(state))
        fresh.rename(work)


def unmerged(work):
    return sorted(set(git(["diff", "--name-only", "--diff-filter=U"], work).split("\n")) - {""})


def stop_at_conflict(work, new):
    """Says where the rebase stands, and ends."""
    rebase = work / ".git" / "rebase-merge"
    subject = git(["log", "-1", "--format=%s", "REBASE_HEAD"], work).strip()
    n, n_all = ((rebase / name).read_text().strip() for name in ("msgnum", "end"))
    raise SystemExit(
        f"bump: patch {n} of {n_all} does not apply to {new['FILE']}: {subject}\n"
        + "".join(f"  conflict in {name}\n" for name in unmerged(work))
        + f"Nothing has changed but {work}, where git's rebase waits. Either\n"
        f"  resolve them there, `git add` the files, and run `make bump VERSION={new['VERSION']}` again; or\n"
        f"  `git rebase --skip` there, if the patch is not needed any more, and run it again; or\n"
        f"  delete that folder, and all is as before."
    )


def rebase(work, old, new):
    """All patches onto the new tree; git merges three ways."""
    is_under_way = (work / ".git" / "rebase-merge").exists()
    if is_under_way and unmerged(work):
        stop_at_conflict(work, new)
    if is_under_way:
        command = ["rebase", "--continue"]
    elif run_git(["merge-base", "--is-ancestor", "pristine", "patches"], work).returncode != 0:
        command = ["rebase", "--merge", "--quiet", "--onto", "pristine", f"pristine-{old['VERSION']}", "patches"]
    else:
        return
    done = run_git(["-c", "core.editor=true", *command], work, env=IDENTITY)
    if done.returncode != 0 and unmerged(work):
        stop_at_conflict(work, new)
    if done.returncode != 0:
        raise SystemExit(f"git {' '.join(command)} in {work} failed:\n{done.stdout}{done.stderr}")


def finish(work, state):
    """Prove the patches on a fresh tree, write them and the pin, say what is left to do."""
    old, new, sdist = state["old"], state["new"], pathlib.Path(state["sdist"])
    if git(["status", "--porcelain"], work):
        raise SystemExit(f"bump: {work} has uncommitted changes: commit or amend them, then run it again")
    with tempfile.TemporaryDirectory() as folder:
        target, tree = pathlib.Path(folder, "patches"), pathlib.Path(folder, "tree")
        target.mkdir()
        export(work, target)
        extract_from(sdist, new["TREE"] + "/", tree, KEEP)
        for path in list_patches(target):
            apply_patch(tree, path)
        lines = report(work, old, new, fetch(), sdist, list_patches(), list_patches(target))
        files = dict.fromkeys(list_patches())
        files |= {PATCHES / path.name: path.read_bytes() for path in list_patches(target)}
        replace_all({**files, **pinned_files(old, new)})
    (work / ".git" / "morphkv-key").write_text(stored_key())
    (work / ".git" / BUMP).unlink()
    print("\n".join(lines))


def bump(version, work, sdist, commit):
    old = read_pin()
    saved = work / ".git" / BUMP
    if not saved.exists():
        if version == old["VERSION"]:
            print(f"{old['PACKAGE']} {version} is the pinned version: nothing to do")
            return
        if work.exists():
            raise SystemExit(f"bump: {work} is there already: export its commits (make refresh-patches), and delete it")
        path = find_sdist(old["PACKAGE"], version, sdist)
        new = read_new_pin(old["PACKAGE"], version, path, commit)
        pinned_files(old, new)  # or stop, before there is anything to do
        start(work, old, new, path)
    state = json.loads(saved.read_text())
    target = state["new"]["VERSION"]
    if target != version:
        raise SystemExit(f"bump: {work} is on its way to {target}, not {version}: end that first, or delete it")
    if state["key"] != stored_key():
        raise SystemExit(
            f"bump: native/patches or native/UPSTREAM changed since {work} was made: delete it, begin anew"
        )
    rebase(work, state["old"], state["new"])
    finish(work, state)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="of llama-cpp-python")
    parser.add_argument("--sdist", type=pathlib.Path, help="use this file instead of the package index's")
    parser.add_argument("--commit", help="llama.cpp's, where the sdist does not say")
    parser.add_argument("--work", type=pathlib.Path, default=WORK, help="the patchwork (default build/patchwork)")
    args = parser.parse_args()
    if not re.fullmatch(r"\d+(\.\d+)*", args.version):
        parser.error(f"a version is numbers and dots, got {args.version!r}")
    bump(args.version, args.work.resolve(), args.sdist, args.commit)


if __name__ == "__main__":
    main()
