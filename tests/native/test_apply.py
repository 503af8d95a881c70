"""native/apply.sh on the sources of the pinned sdist, and what a plain CMake build of llama.cpp makes of them."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
UNTOUCHED = "src/llama-sampler.cpp"  # by any patch
PATCHED = "src/llama-model.cpp"

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="apply.sh is for a POSIX shell"),
    pytest.mark.timeout(3600),  # builds llama.cpp
]


def script(name, *args):
    command = [sys.executable, NATIVE / "scripts" / name, *args]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def unpack(dest, *options):
    script("unpack_upstream.py", dest, *options)
    (dest / ".morphkv-manifest.json").unlink()
    return dest


@pytest.fixture(scope="module")
def files():
    """What apply.sh looks at: the files that patches change, and the sources that are compared as a whole."""
    patches = "".join(path.read_text() for path in NATIVE.glob("patches/*.patch"))
    changed = re.findall(r"(?m)^\+\+\+ b/(.*)$", patches)
    return ["--only", "common", "ggml/include", "include", "src", *changed]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, files):
    return unpack(tmp_path_factory.mktemp("pristine") / "llama.cpp", "--pristine", *files)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory, files):
    """{path: content} of the same, as the package is built from."""
    return content(unpack(tmp_path_factory.mktemp("packaged") / "llama.cpp", *files))


@pytest.fixture
def tree(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "llama.cpp")


@pytest.fixture
def native(tmp_path):
    """What apply.sh reads, to be changed."""
    copy = tmp_path / "native"
    shutil.copytree(NATIVE / "patches", copy / "patches")
    for name in ("apply.sh", "UPSTREAM"):
        shutil.copy(NATIVE / name, copy)
    return copy


def git(tree, *args):
    identity = ["-c", "user.name=x", "-c", "user.email=x", "-c", "core.autocrlf=false"]
    return subprocess.run(
        ["git", *identity, *args], cwd=tree, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit_all(tree):
    """Makes tree a git repository; its commit."""
    git(tree, "init", "--quiet")
    git(tree, "add", "--all", "--force")
    git(tree, "commit", "--quiet", "--message=x")
    return git(tree, "rev-parse", "HEAD")


def apply(tree, native=NATIVE, **options):
    command = ["sh", native / "apply.sh", tree]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def content(tree):
    """{path: content} of all files."""
    return {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file() and ".git" not in p.parts}


def apply_in_full(tree, native=NATIVE):
    done = apply(tree, native)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(tree, sentence, native=NATIVE):
    """All or nothing: a tree that is refused stays as it was."""
    before = content(tree)
    done = apply(tree, native)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(sentence, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1 or "does not apply" in sentence
    assert content(tree) == before


@pytest.mark.parametrize("place", ["llama.cpp", "a repository/build/llama.cpp"])
def test_the_tree_becomes_that_of_the_package(pristine, packaged, tmp_path, place):
    tree = shutil.copytree(pristine, tmp_path / place)
    if "repository" in place:
        git(tree.parents[1], "init", "--quiet")
    told = apply_in_full(tree)
    assert f"{len(list(NATIVE.glob('patches/*.patch')))} patches applied" in told
    assert "include/llama.h is as before" in told
    assert content(tree) == packaged


def test_a_second_time_nothing_is_done(tree):
    apply_in_full(tree)
    before = content(tree)
    assert "patched already, by these very patches" in apply_in_full(tree)
    assert content(tree) == before


def test_a_tree_that_is_patched_in_part_is_refused(pristine, tree):
    apply_in_full(tree)
    shutil.copy(pristine / PATCHED, tree / PATCHED)
    refused(tree, f"is patched in part, or by other patches: .* {PATCHED} is not")


def test_a_tree_that_other_patches_have_changed_is_refused(tree, native):
    last = max(native.glob("patches/*.patch"))
    apply_in_full(tree, native)
    last.write_text(re.sub(r"(?m)^(index \w+\.\.)\w+", rf"\g<1>{'5' * 40}", last.read_text()))
    refused(tree, "is patched in part, or by other patches", native)


@pytest.mark.parametrize("name", [PATCHED, UNTOUCHED, "include/llama.h"])
def test_sources_of_another_version_are_refused(tree, name):
    with (tree / name).open("a") as file:
        file.write("// newer\n")
    commit = re.search(r"(?m)^COMMIT=(.+)$", (NATIVE / "UPSTREAM").read_text())[1]
    refused(tree, f"is not llama.cpp of commit {commit}: its sources have the id")


def test_a_checkout_of_another_commit_is_refused(tree):
    with (tree / UNTOUCHED).open("a") as file:
        file.write("// newer\n")
    refused(tree, f"is not llama.cpp of commit .*: HEAD is {commit_all(tree)}")


def test_a_checkout_may_be_edited_where_no_patch_goes(tree, native):
    pin = native / "UPSTREAM"
    pin.write_text(re.sub("COMMIT=.*", f"COMMIT={commit_all(tree)}", pin.read_text()))
    for name in (UNTOUCHED, PATCHED):
        with (tree / name).open("a") as file:
            file.write("// mine\n")
    refused(tree, f"was edited: {PATCHED} is not that of commit", native)
    git(tree, "checkout", PATCHED)
    apply_in_full(tree, native)
    assert "// mine" in (tree / UNTOUCHED).read_text()


def test_the_sdist_s_own_git_file_leads_nowhere(tree):
    (tree / ".git").write_text("gitdir: ../../.git/modules/vendor/llama.cpp\n")
    assert apply(".", cwd=tree).returncode == 0


def test_another_repository_in_the_environment_is_left_alone(tree, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    env = {**os.environ, "GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other)}
    assert apply(tree, env=env).returncode == 0
    assert git(other, "status", "--porcelain") == ""


def test_when_one_patch_does_not_fit_none_is_applied(tree, native):
    (patch,) = native.glob("patches/*-cmake-*.patch")
    patch.write_text(patch.read_text().replace("\n endif()\n", "\n endif(wrong)\n"))
    refused(tree, f"{patch.name} does not apply", native)


def test_a_patch_that_does_less_than_it_says_is_refused(tree, native):
    (patch,) = native.glob("patches/*-cmake-*.patch")
    patch.write_text(patch.read_text().replace("\n+set(", "\n+get("))
    refused(tree, "CMakeLists.txt is not what the patches say after git apply", native)


def test_llama_h_may_not_be_patched(tree, native):
    first = min(native.glob("patches/*.patch"))
    first.write_text(re.sub(r"(?m)^\+\+\+ b/.*$", "+++ b/include/llama.h", first.read_text()))
    refused(tree, "a patch changes include/llama.h", native)


def test_what_is_no_llama_cpp_is_refused(tmp_path):
    refused(tmp_path, "holds no llama.cpp: include/llama.h is missing")
    assert "no such folder" in apply(tmp_path / "missing").stderr


def test_the_commit_is_that_of_the_pinned_file():
    """The changelog in there has the beginning of it, README.md has all of it."""
    pin = dict(re.findall(r"(?m)^(\w+)=(.*)$", (NATIVE / "UPSTREAM").read_text()))
    with tarfile.open(script("fetch_upstream.py")) as archive:
        log = archive.extractfile(pin["TREE"].split("/")[0] + "/CHANGELOG.md").read().decode()
    newest = log.split(f"## [{pin['VERSION']}]")[1]
    assert pin["COMMIT"].startswith(re.search(r"ggml-org/llama\.cpp@(\w{9,})", newest)[1])
    assert pin["COMMIT"] in (NATIVE.parent / "README.md").read_text()


def run(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    return done.returncode, " ".join(done.stdout.split())


# Nothing that is not asked for below: upstream's options. Without OpenSSL, without a page that would be downloaded.
OPTIONS = ["BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP", "USE_PREBUILT_UI", "OPENSSL"]
OPTIONS = ["-DGGML_RPC=ON", *(f"-DLLAMA_{name}=OFF" for name in OPTIONS)]
PROGRAMS = ("llama-server", "llama-bench", "llama-perplexity")
TIGHT = ["--morphkv", "--morphkv-capacity", "64", "--morphkv-window", "8", "--morphkv-interval", "16"]


@pytest.fixture(scope="module")
def plain_build(tmp_path_factory):
    """The folder of the programs, anew in MORPHKV_PLAIN_BUILD.

    In build/NAME of the repository, paths and options are those of build/venv, and ccache has most objects.
    """
    folder = Path(os.environ.get("MORPHKV_PLAIN_BUILD") or tmp_path_factory.mktemp("plain"))
    shutil.rmtree(folder / "upstream", ignore_errors=True)
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    tree = unpack(folder / "upstream", "--pristine")
    apply_in_full(tree)
    configure = ["cmake", "-S", tree, "-B", folder, *OPTIONS]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    code, told = run(configure)
    assert code != 0
    assert "this llama.cpp calls MorphKV: configure with -DLLAMA_MORPHKV_DIR=" in told
    # relative to where cmake is called
    code, told = run([*configure, f"-DLLAMA_MORPHKV_DIR={NATIVE.name}"], cwd=NATIVE.parent)
    assert code == 0, told
    env = {**os.environ, "CCACHE_BASEDIR": str(NATIVE.parent), "CCACHE_NOHASHDIR": "1"}
    parallel = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count())
    code, told = run(["cmake", "--build", folder, "--parallel", parallel, "--target", *PROGRAMS], env=env)
    assert code == 0, told[-5000:]
    return folder / "bin"


@pytest.mark.slow
class TestPlainBuild:
    @pytest.mark.parametrize("program", PROGRAMS)
    def test_programs_have_the_options(self, plain_build, program):
        code, told = run([plain_build / program, "--help"])
        assert code == 0
        assert "--morphkv-capacity" in told

    def test_bench_and_perplexity_run(self, plain_build, tiny_llama, tmp_path):
        flags = ["-m", tiny_llama(), "-t", "1"]
        code, told = run([plain_build / "llama-bench", *flags, "-p", "0", "-n", "300", "-r", "1", *TIGHT])
        assert code == 0, told
        text = tmp_path / "text.txt"
        text.write_text("a quick brown fox jumps over the lazy dog " * 40)
        flags += ["-f", text, "-c", "512", "-b", "512", "--chunks", "1"]
        code, told = run([plain_build / "llama-perplexity", *flags, *TIGHT, "--morphkv-prompt-room", "64"])
        assert code == 0, told
        code, told = run([plain_build / "llama-perplexity", *flags, *TIGHT, "--morphkv-window", "64"])
        assert code != 0
        assert "window must be in 1..63, got 64" in told

    def test_a_server_evicts(self, plain_build, tiny_llama, tmp_path):
        from support.server_process import ServerProcess

        command = [str(plain_build / "llama-server"), "--model", str(tiny_llama())]
        server = ServerProcess("", *TIGHT, log=tmp_path / "log", command=command).start()
        try:
            assert server.complete([1, 260, 261], 200)["timings"]["evictions_n"] > 3
        finally:
            server.stop()
