"""A newcomer's path: what README and the pages tell people to type is typed, page by page, with the demo model."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import morphkv_cpp
from support.hub import Hub
from support.server_process import free_port

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/index.md", "docs/chat.md", "docs/server.md", "docs/archive.md", "docs/settings.md"]
PAGES += ["docs/models.md", "docs/devices.md"]
START_SECONDS = 300

# Lines that are not run, by how they begin, each with the reason.
LEFT_OUT = {
    "make ": "builds the package, or runs all tests",
    'CMAKE_ARGS="-DLLAMA_BUILD=OFF': "builds for ten minutes; tests/native/test_package.py looks at what was built",
    "docker run": "needs Docker, and the image of the line before",
    "git clone https://github.com/": "needs a host beside the package registries",
    "native/apply.sh llama.cpp": "is about that clone; make test-apply runs it",
    "cmake -S llama.cpp": "as above",
    "cmake --build llama.cpp": "as above",
    "llama.cpp/build/bin/llama-server": "as above",
}
# What makes a command short, by how it begins.
SHORT = {
    "morphkv chat": "-n 16 -t 1",
    "morphkv generate": "-n 16 -t 1",
    "morphkv bench decode": "-t 1 --capacity 64 --interval 16 --depth 100 --prompt 100 --rounds 1",
}
QUESTION = "What is bread?\n"  # for a chat that reads standard input
N_MOST = 16  # tokens of an answer where the page names no limit
SERVE = "morphkv serve "
NAMED = re.compile(r"hf:(\S+/\S+):(\S+)")  # a model of the hub


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of each block of Python or shell, in their order."""
    found = re.findall(r"^```(python|sh|bash)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, path
    return found


def commands(block: str) -> list[str]:
    """One for each line, those that a backslash continues joined; comments are bash's to leave out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


class Machine:
    """The newcomer's: a folder with model.gguf, and `morphkv` in PATH. One server runs at a time."""

    def __init__(self, folder: Path, model: Path):
        self.folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.server: subprocess.Popen | None = None
        self.has_hub = True
        (folder / "model.gguf").symlink_to(model)
        # long enough for an archive of its own
        manual = [f"Step {i}: turn the valve of pump {i} to the left, and wait {i + 1} minutes." for i in range(80)]
        (folder / "manual.txt").write_text("\n".join(manual), encoding="utf-8")
        program = folder / "bin" / "morphkv"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m morphkv_cpp "$@"\n')
        program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "MORPHKV_DEMO_MODEL": str(model),
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }

    def type(self, command: str) -> None:
        if any(command.startswith(start) for start in LEFT_OUT):
            return
        command = command.replace("http://127.0.0.1:8080", self.url)
        if command.startswith(SERVE):
            self.serve(command)
        elif match := NAMED.search(command):
            self.pull(command, *match.groups())
        else:
            for start, options in SHORT.items():
                if command.startswith(start):
                    command = f"{command.partition(' #')[0]} {options}"
            self.run(command)

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.environment,
            input=QUESTION,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.stdout, command
        return done.stdout

    def serve(self, command: str) -> None:
        """Serve in the background until the next server, at a port of its own, with one thread and short answers."""
        self.stop()
        port = self.url.rpartition(":")[2]
        command = command.partition(" #")[0].replace("--port 8080", "")
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {command} --port {port} -t 1 -n {N_MOST}"],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + START_SECONDS
        while subprocess.run(["curl", "-sf", f"{self.url}/health"], capture_output=True, check=False).returncode:
            log_text = (self.folder / "server.log").read_text(errors="replace")[-3000:]
            assert self.server.poll() is None, log_text
            assert time.monotonic() < end, log_text
            time.sleep(0.2)

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait(timeout=60)
            self.server = None

    def pull(self, command: str, repository: str, part: str) -> None:
        """From a stand-in for the hub that has a model of this name."""
        try:
            import huggingface_hub  # noqa: F401
        except ModuleNotFoundError:
            self.has_hub = False
            return
        name = repository.partition("/")[2].removesuffix("-GGUF")
        path = self.folder / "hub" / repository / f"{name}-{part}.gguf"
        path.parent.mkdir(parents=True)
        path.symlink_to(self.folder / "model.gguf")
        hub = Hub(self.folder / "hub")
        self.environment["HF_ENDPOINT"] = hub.url.rstrip("/")
        try:
            assert Path(self.run(command).strip()).name == path.name
            assert f"hf:{repository}:{path.name}" in self.run("morphkv pull")
        finally:
            hub.close()


@pytest.fixture
def machine(demo_model, tmp_path) -> Iterator[Machine]:
    machine = Machine(tmp_path, demo_model.resolve())
    yield machine
    machine.stop()


@pytest.fixture
def short_answers(monkeypatch):
    """What a page's Python writes ends after a few tokens, on one thread and without llama.cpp's log."""

    def limit(owner: type, name: str, **defaults: object) -> None:
        before = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, *args, **more: before(self, *args, **{**defaults, **more}))

    limit(morphkv_cpp.Llama, "__init__", verbose=False, n_threads=1, n_threads_batch=1)
    limit(morphkv_cpp.Llama, "create_chat_completion", max_tokens=N_MOST)
    for name in ("say", "regenerate", "edit"):
        limit(morphkv_cpp.Session, name, max_tokens=N_MOST)


@pytest.mark.demo
@pytest.mark.skipif(sys.platform == "win32", reason="bash")
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_to_type_works(page, machine, short_answers, monkeypatch, capsys):
    monkeypatch.chdir(machine.folder)
    names: dict = {}
    try:
        for language, text in blocks(ROOT / page):
            if language != "python":
                for command in commands(text):
                    machine.type(command)
                continue
            if "openai" in text:
                pytest.importorskip("openai")
            exec(compile(text.replace("http://127.0.0.1:8080", machine.url), page, "exec"), names)
    finally:
        if "llm" in names:
            names["llm"].close()
    for file in re.findall(r'save(?:_state_file)?\("([^"]+)"\)', (ROOT / page).read_text(encoding="utf-8")):
        assert (machine.folder / file).stat().st_size > 0
    if "print(" in (ROOT / page).read_text(encoding="utf-8"):
        assert capsys.readouterr().out.strip()
    if not machine.has_hub:
        pytest.skip("all but `morphkv pull` ran, which needs huggingface_hub")


def test_what_is_left_out_is_on_a_page():
    lines = [
        line
        for page in PAGES
        for language, text in blocks(ROOT / page)
        if language != "python"
        for line in commands(text)
    ]
    for start in (*LEFT_OUT, *SHORT, SERVE):
        assert any(line.startswith(start) for line in lines), start
    assert shutil.which("curl") or not any(line.startswith("curl") for line in lines)
