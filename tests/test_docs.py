"""What the documentation names is there: options, commands, make targets, files, names of Python."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import typer.main

import morphkv_cpp
from morphkv_cpp.cli.app import app
from support.server_process import run_program

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES += ["README.md", "CONTRIBUTING.md", "SECURITY.md", "native/README.md"]
WORKFLOWS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml"))
IMAGES = ["Dockerfile", "Dockerfile.cuda"]

# Of other programs, which the pages name as well: pip, git, cmake, ctest, docker.
FOREIGN = {"--no-cache-dir", "--find-links", "--build", "--target", "--amend", "--test-dir", "--gpus", "--value"}


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*\b(?!\w*=ON)", text))


def leaves(command, *path: str):
    """All commands of the command line with their words."""
    for name, sub in getattr(command, "commands", {}).items():
        yield from leaves(sub, *path, name)
    yield path, command


@cache
def our_commands() -> dict[tuple[str, ...], set[str]]:
    return {
        path: {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for path, command in leaves(typer.main.get_command(app))
    }


@cache
def known_options() -> set[str]:
    ours = set().union(*our_commands().values())
    programs = [run_program(name, "--help").stdout for name in ("llama-server", "llama-bench", "llama-perplexity")]
    return ours | options_in(" ".join(programs)) | FOREIGN | {"--help"}


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/changelog.md"])
def test_options_are_there(page):
    """For developers, those of programs in tests/ as well."""
    named = options_in(text_of(page)) - known_options()
    if page in ("CONTRIBUTING.md", "native/README.md"):
        named -= options_in("".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")))
    assert named == set()


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_there(page):
    words = {path[0] for path in our_commands() if path}
    for line in re.findall(r"\bmorphkv ([a-z-]+(?: [a-z]+)?)", re.sub(r"(?s)^---.*?^---", "", text_of(page))):
        first, _, second = line.partition(" ")
        if first in ("bench", "eval") and second:
            assert (first, second) in our_commands(), f"morphkv {line}"
        elif f"`morphkv {line}" in text_of(page) or f"\nmorphkv {line}" in text_of(page):
            assert first in words, f"morphkv {line}"


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", text_of("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("path", [*PAGES, *WORKFLOWS, *IMAGES, ".ci/run"])
def test_make_targets_are_there(path):
    named = set(re.findall(r"(?:^|[`]|run: |RUN |&& )make ([a-z][a-z-]*)(?![a-z/-])", text_of(path), re.MULTILINE))
    assert named - targets() == set()


def test_workflows_are_looked_at():
    named = {name for path in WORKFLOWS for name in re.findall(r"run: make ([a-z-]+)", text_of(path))}
    assert {"check", "test", "docs", "test-vulkan"} <= named


@pytest.mark.parametrize("page", PAGES)
def test_files_are_there(page):
    """Paths of the repository in code style."""
    named = re.findall(r"`((?:native|bridge|models|morphkv_cpp|tests|docs|examples)/[\w./-]+)`", text_of(page))
    base = [ROOT, ROOT / Path(page).parent, ROOT / "morphkv_cpp"]
    installed = {"morphkv_cpp/lib", "morphkv_cpp/bin", "morphkv_cpp/include"}
    named = [name for name in named if name not in installed and "ROOM" not in name]
    assert [name for name in named if not any((folder / name).exists() for folder in base)] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "native/README.md", "SECURITY.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text_of(page))
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 150


def test_settings_have_their_defaults():
    """The table of docs/settings.md is the class."""
    rows = dict(re.findall(r"^\| `(\w+)` \| `?\"?([^|`\"]+)\"?`? \|", text_of("docs/settings.md"), re.MULTILINE))
    fields = {name: field.default for name, field in morphkv_cpp.MorphKV.__dataclass_fields__.items()}
    assert {name: str(default) for name, default in fields.items()} == {
        name: value.strip() for name, value in rows.items()
    }


def test_citation_has_the_version():
    assert f"\nversion: {morphkv_cpp.__version__}\n" in text_of("CITATION.cff")


def test_the_shell_reads_what_workflows_run():
    """Each `run:` of a job on Linux or macOS."""
    yaml = pytest.importorskip("yaml")
    scripts = []
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(text_of(path)).get("jobs", {}).items():
            assert "timeout-minutes" in job, f"{path}: {name}"
            scripts += [step["run"] for step in job.get("steps", []) if "run" in step]
    assert len(scripts) > 8
    for script in scripts:
        plain = re.sub(r"\$\{\{.*?\}\}", "x", script)
        subprocess.run(["bash", "-n", "-c", plain], check=True)
