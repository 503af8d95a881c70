"""native/scripts/bump.py between two made-up versions of a tree of two files."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "native" / "scripts"
COMMITS = {"1.0": "1" * 40, "2.0": "2" * 40}
MEMORY = "".join(f"line {i}\n" for i in range(1, 21))
OTHER = "other\n"

# Which scripts a copy of the project needs.
USED = ("bump.py", "bump_report.py", "fetch_upstream.py", "refresh_patches.py", "unpack_upstream.py")


def sdist(folder, version, memory, commit=None, changelog=None, **more):
    """As llama-cpp-python's: llama.cpp below vendor, and its commit in git's books of the submodule."""
    files = {
        "vendor/llama.cpp/src/memory.cpp": memory,
        "vendor/llama.cpp/src/other.cpp": OTHER,
        "vendor/llama.cpp/include/llama.h": "int n;\n",
        "llama_cpp/llama.py": f"version = {version}\n",
        "CHANGELOG.md": changelog or f"## [{version}]\n\n- llama.cpp@{COMMITS[version][:9]}\n",
        ".git/modules/vendor/llama.cpp/HEAD": (commit or COMMITS[version]) + "\n",
        **more,
    }
    path = folder / f"llama_cpp_python-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-{version}/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


class Project:
    """A copy of the scripts with a pin, in place of ours."""

    def __init__(self, root):
        self.root, self.cache = root / "project", root / "cache"
        self.native, self.work = self.root / "native", self.root / "build" / "patchwork"
        (self.native / "scripts").mkdir(parents=True)
        (self.native / "patches").mkdir()
        self.cache.mkdir()
        for name in USED:
            shutil.copy(SCRIPTS / name, self.native / "scripts")
        mirrors = "# ours\twhat\tupstream\nnative/a.cpp\tthe format of a state\tvendor/llama.cpp/src/memory.cpp\n"
        mirrors += "native/b.cpp\tthe other\tvendor/llama.cpp/src/other.cpp\n"
        (self.native / "scripts" / "mirrors.tsv").write_text(mirrors)
        pin = [
            "# a comment",
            "PACKAGE=llama-cpp-python",
            *(f"{key}=?" for key in ("VERSION", "FILE", "SHA256", "TREE")),
        ]
        (self.native / "UPSTREAM").write_text("\n".join([*pin, "# another", "COMMIT=?", "SOURCES_ID=?", ""]))
        (self.root / "pyproject.toml").write_text('a = ["llama-cpp-python==?"]\n')
        (self.root / "README.md").write_text("git checkout ?\n")
        self.pin("1.0", sdist(self.cache, "1.0", MEMORY))

    def pin(self, version, path):
        """Write the first pin, as the script computes it."""
        code = "import json, sys, pathlib, bump; print(json.dumps(bump.read_new_pin(sys.argv[1], sys.argv[2], "
        code += "pathlib.Path(sys.argv[3]), None)))"
        command = [sys.executable, "-c", code, "llama-cpp-python", version, path]
        new = json.loads(subprocess.run(command, cwd=self.native / "scripts", check=True, capture_output=True).stdout)
        for name in ("native/UPSTREAM", "pyproject.toml", "README.md"):
            text = (self.root / name).read_text()
            for key, value in new.items():
                text = re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text)
            text = text.replace("==?", f"=={version}").replace("checkout ?", f"checkout {new['COMMIT']}")
            (self.root / name).write_text(text)

    def run(self, script, *args, **env):
        command = [sys.executable, self.native / "scripts" / script, *args]
        env = {**os.environ, "MORPHKV_CACHE": str(self.cache), "PYTHONDONTWRITEBYTECODE": "1", **env}
        env.pop("MORPHKV_UPSTREAM_SDIST", None)
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env)

    def bump(self, *args, **env):
        """Its exit code and all that it says."""
        done = self.run("bump.py", *args, **env)
        return done.returncode, done.stdout + done.stderr

    def git(self, *args):
        identity = ["-c", "user.name=x", "-c", "user.email=x", "-c", "core.editor=true"]
        done = subprocess.run(["git", *identity, *args], cwd=self.work, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def patch(self, subject, old, new, name="src/memory.cpp"):
        """A patch more, written as a developer does."""
        if not self.work.exists():
            assert self.run("refresh_patches.py", "--init").returncode == 0
        path = self.work / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        self.git("commit", "--quiet", "--all", "--message", subject)

    def export(self):
        done = self.run("refresh_patches.py")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(self.work)

    def content(self):
        """{path: content} of all but build."""
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(p.relative_to(self.root)): p.read_bytes() for p in paths if "build" not in p.parts}


@pytest.fixture
def project(tmp_path):
    """With two patches on version 1.0: a call behind line 3, another behind line 15."""
    res = Project(tmp_path)
    res.patch("memory: call the first hook", "line 3\n", "line 3\nhook_a();\n")
    res.patch("memory: call the second hook", "line 15\n", "line 15\nhook_b();\n")
    res.export()
    return res


def edited(*changes):
    memory = MEMORY
    for old, new in changes:
        assert old in memory
        memory = memory.replace(old, new, 1)
    return memory


APART = edited(("line 9\n", "line 9\nupstream's\n"))
CLOSE = edited(("line 1\n", "upstream's\n" * 40 + "line 1\n"), ("line 5\n", "line 5, changed\n"))
CONFLICT = edited(("line 3\nline 4\n", "line 3, changed\nline 4, changed\n"))


@pytest.mark.parametrize("memory", [MEMORY, APART, CLOSE], ids=["unchanged", "apart", "three-way"])
def test_the_pin_and_the_patches_move_together(project, tmp_path, memory):
    before = project.content()
    assert project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", memory))[0] == 0
    after = project.content()
    assert {name for name in after if after[name] != before[name]} >= {"native/UPSTREAM", "pyproject.toml", "README.md"}
    assert after.keys() == before.keys()
    assert after["pyproject.toml"] == b'a = ["llama-cpp-python==2.0"]\n'
    assert after["README.md"].decode() == f"git checkout {COMMITS['2.0']}\n"
    pin = after["native/UPSTREAM"].decode()
    assert "VERSION=2.0\nFILE=llama_cpp_python-2.0.tar.gz\n" in pin
    assert pin.startswith("# a comment\n")
    assert f"# another\nCOMMIT={COMMITS['2.0']}\n" in pin
    # As a build unpacks it, by the new pin.
    done = project.run("unpack_upstream.py", tmp_path / "tree")
    assert (done.returncode, done.stderr) == (0, "")
    expected = memory.replace("line 3\n", "line 3\nhook_a();\n").replace("line 15\n", "line 15\nhook_b();\n")
    assert (tmp_path / "tree/src/memory.cpp").read_text() == expected
    assert project.run("refresh_patches.py", "--check").returncode == 0
    assert project.run("refresh_patches.py").returncode == 0  # build/patchwork goes on from there
    assert project.content() == after


def test_only_git_s_three_ways_apply_the_patch_of_that_test(project, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/memory.cpp").write_text(CLOSE)
    patch = min((project.native / "patches").iterdir())
    command = ["git", "apply", patch]
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    assert b"does not apply" in subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, env=env).stderr


def test_there_and_back_leaves_all_as_it_was(project, tmp_path):
    before = project.content()
    assert project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", CLOSE))[0] == 0
    assert project.content() != before
    shutil.rmtree(project.work)
    assert project.bump("1.0", "--sdist", sdist(tmp_path, "1.0", MEMORY))[0] == 0
    assert project.content() | {"native/UPSTREAM": b""} == before | {"native/UPSTREAM": b""}


def test_a_conflict_stops_and_nothing_has_moved_until_it_is_resolved(project, tmp_path):
    before, path = project.content(), sdist(tmp_path, "2.0", CONFLICT)
    code, said = project.bump("2.0", "--sdist", path)
    assert code == 1
    assert "patch 1 of 2 does not apply to llama_cpp_python-2.0.tar.gz: memory: call the first hook" in said
    assert "conflict in src/memory.cpp" in said
    assert "run `make bump VERSION=2.0` again" in said
    assert project.content() == before
    again = project.bump("2.0")
    assert again == (code, said)
    assert "end that with `make bump`" in project.run("refresh_patches.py").stderr

    (project.work / "src/memory.cpp").write_text(CONFLICT.replace("line 4, ", "hook_a();\nline 4, "))
    project.git("add", "src/memory.cpp")
    code, said = project.bump("2.0")
    assert (code, said.splitlines()[1]) == (0, "2 patches of 2 are in, proved on a fresh tree")
    assert project.run("unpack_upstream.py", tmp_path / "tree").returncode == 0
    assert (tmp_path / "tree/src/memory.cpp").read_text().count("hook_") == 2
    assert b"VERSION=2.0" in project.content()["native/UPSTREAM"]


def test_a_patch_that_is_skipped_is_told(project, tmp_path):
    assert project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", CONFLICT))[0] == 1
    project.git("rebase", "--skip")
    code, said = project.bump("2.0")
    assert (code, said.splitlines()[1]) == (0, "1 patches of 2 are in, proved on a fresh tree")
    assert "gone, as upstream has it or you left it out: memory-call-the-first-hook.patch" in said
    assert [path.name for path in (project.native / "patches").iterdir()] == ["0001-memory-call-the-second-hook.patch"]


def test_a_patch_that_upstream_has_taken_is_told(project, tmp_path):
    taken = edited(("line 15\n", "line 15\nhook_b();\n"))
    code, said = project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", taken))
    assert code == 0
    assert "left it out: memory-call-the-second-hook.patch; take its row out of native/README.md" in said


def test_a_rebase_that_was_aborted_begins_anew(project, tmp_path):
    path = sdist(tmp_path, "2.0", CONFLICT)
    first = project.bump("2.0", "--sdist", path)
    project.git("rebase", "--abort")
    assert project.bump("2.0") == first


def test_a_move_under_way_to_another_version_is_refused(project, tmp_path):
    assert project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", CONFLICT))[0] == 1
    code, said = project.bump("3.0")
    assert code == 1
    assert "is on its way to 2.0, not 3.0" in said


def test_a_failure_while_files_are_written_undoes_all(project, tmp_path):
    before = project.content()
    (project.root / "README.md.partial").mkdir()  # so that it cannot be replaced
    code, said = project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", APART))
    assert code == 1
    assert "README.md.partial" in said
    assert project.content() == before
    (project.root / "README.md.partial").rmdir()
    assert project.bump("2.0")[0] == 0


def test_what_follows_a_file_that_upstream_has_changed_is_to_be_read_again(project, tmp_path):
    said = project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", APART))[1]
    assert "native/a.cpp: the format of a state\n      vendor/llama.cpp/src/memory.cpp  +1 -0" in said
    assert "native/b.cpp" not in said
    assert re.search(r"Left to do:\n +1\. `make venv`", said)


def test_what_upstream_left_alone_is_not_to_be_read_again(project, tmp_path):
    said = project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", MEMORY))[1]
    assert "Upstream has changed nothing of what ours follows by hand" in said
    assert "native/a.cpp" not in said


def test_the_pinned_version_is_nothing_to_do(project):
    before = project.content()
    assert project.bump("1.0") == (0, "llama-cpp-python 1.0 is the pinned version: nothing to do\n")
    assert project.content() == before
    assert not project.work.exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"commit": "3" * 40}, "but the sdist's CHANGELOG.md says 222222222"),
        ({"commit": "unknown"}, "has 40 hex digits, got 'unknown': give it with --commit"),
    ],
)
def test_a_commit_that_is_not_sure_is_refused(project, tmp_path, options, message):
    code, said = project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", MEMORY, **options))
    assert code == 1
    assert message in said
    assert not project.work.exists()


def test_a_pin_that_does_not_stand_where_it_should_is_refused(project, tmp_path):
    (project.root / "README.md").write_text("no commit here\n")
    code, said = project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", MEMORY))
    assert code == 1
    assert f"README.md must hold {COMMITS['1.0']} once" in said


def test_commits_that_lie_in_the_patchwork_are_not_overwritten(project, tmp_path):
    project.patch("memory: a third", "line 18\n", "line 18\nhook_c();\n")
    code, said = project.bump("2.0", "--sdist", sdist(tmp_path, "2.0", MEMORY))
    assert code == 1
    assert "is there already: export its commits" in said
    assert project.git("log", "-1", "--format=%s") == "memory: a third"


def test_without_a_file_pip_fetches_it(project, tmp_path):
    """From a folder; the package says its own name and needs nothing to be built."""
    backend = "import os\n\nNAME = 'llama_cpp_python-2.0.dist-info'\n\n\n"
    backend += "def prepare_metadata_for_build_wheel(folder, config=None):\n"
    backend += "    os.mkdir(f'{folder}/{NAME}')\n    with open(f'{folder}/{NAME}/METADATA', 'w') as f:\n"
    backend += "        f.write('Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: 2.0\\n')\n"
    backend += "    return NAME\n"
    toml = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    info = "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 2.0\n"
    files = {"backend.py": backend, "pyproject.toml": toml, "PKG-INFO": info}
    index = tmp_path / "index"
    index.mkdir()
    path = sdist(index, "2.0", APART, **files)
    code, said = project.bump("2.0", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index), PIP_CONFIG_FILE=os.devnull)
    assert code == 0, said
    assert (project.cache / path.name).read_bytes() == path.read_bytes()
    assert list(project.cache.glob(".*")) == []


def test_the_pin_stands_nowhere_else():
    """In CHANGELOG.md history may, and so may what was measured; in a test it would fail after each move."""
    pin = dict(re.findall(r"(?m)^([A-Z0-9_]+)=(.*)$", (ROOT / "native" / "UPSTREAM").read_text()))
    suffixes = {"", ".py", ".md", ".toml", ".cmake", ".txt", ".sh", ".yml", ".h", ".cpp", ".tsv", ".cff"}
    folders = ["bridge", "docs", "examples", "models", "morphkv_cpp", "native", "tests", ".github"]
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in suffixes
    ]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    found = set()
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        if pin["COMMIT"] in text or re.search(rf"(?<![\d.]){re.escape(pin['VERSION'])}(?![\d.]*\d)", text):
            found.add(path.relative_to(ROOT).as_posix())
    assert found - {"CHANGELOG.md", "docs/results.md"} == {"native/UPSTREAM", "pyproject.toml", "README.md"}


def test_what_mirrors_upstream_is_there():
    rows = [line.split("\t") for line in (SCRIPTS / "mirrors.tsv").read_text().splitlines() if line[0] != "#"]
    assert len(rows) > 10
    for ours, what, upstream in rows:
        assert (ROOT / ours).exists()
        assert what
        assert all(name.startswith(("vendor/llama.cpp/", "llama_cpp/")) for name in upstream.split(" "))
