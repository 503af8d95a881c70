"""How far a build is, and what is left of one that fails."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "native" / "scripts" / "with_progress.py"


def build(log: Path, code: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPT, log, sys.executable, "-u", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_tenth_is_told_once_and_the_log_has_it_all(tmp_path):
    code = "for i in range(1, 31): print(f'[{i}/30] Building CXX object {i}.o')"
    done = build(tmp_path / "new" / "log", code)
    assert (done.returncode, done.stdout) == (0, "")
    said = done.stderr.splitlines()
    assert said[0].startswith("compiling: 1 of 30 files (3%)")
    assert [int(line.split()[1]) for line in said] == [1, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert len((tmp_path / "new" / "log").read_text().splitlines()) == 30


def test_a_build_inside_of_another_is_not_counted(tmp_path):
    done = build(tmp_path / "log", "print('[0/2] look', '[1/30] a', '[1/2] b', '[2/2] c', '[30/30] d', sep='\\n')")
    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [
        "compiling: 1 of 30 files (3%)",
        "compiling: 30 of 30 files (100%)",
    ]


def test_a_failure_shows_its_end_and_where_the_rest_is(tmp_path):
    code = "import sys; [print(f'line {i}') for i in range(100)]; print('[1/9] x.o: no such type'); sys.exit(3)"
    done = build(tmp_path / "log", code)
    assert done.returncode == 3
    assert "line 98\n" in done.stderr
    assert "line 10\n" not in done.stderr
    assert "[1/9] x.o: no such type\n" in done.stderr
    assert f"failed with exit code 3; all that it said is in {tmp_path / 'log'}" in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("n", "now_s", "words"),
    [
        (5, 100, "compiling: 5 of 100 files (5%)"),
        (50, 100, "compiling: 50 of 100 files (50%), about 2 min left"),
        (90, 100, "compiling: 90 of 100 files (90%), 11 s left"),
    ],
)
def test_a_terminal_has_one_line(monkeypatch, n, now_s, words):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from with_progress import Progress

    screen = Terminal()
    progress = Progress(screen, start_s=0)
    progress.show(n, 100, now_s)
    assert screen.getvalue() == f"\r{words:<60}"
    progress.end()
    assert screen.getvalue().endswith("\r" + " " * 60 + "\r")
