"""What differs between POSIX and Windows, here as both: the system, or a module of it, is another for the test."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from morphkv_cpp import portable
from morphkv_cpp.cache import whole_file
from support.as_windows import become_windows

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="which files are open is read in /proc")


@pytest.fixture
def windows(monkeypatch):
    """The locks that are asked for."""
    return become_windows(monkeypatch)


@pytest.fixture(params=["as it is", "as Windows"])
def either(request, monkeypatch):
    if request.param == "as Windows":
        become_windows(monkeypatch)


@pytest.fixture
def opened(tmp_path):
    """Factory of handles of a file."""
    handles = []

    def open_it(name="x"):
        handles.append(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)))
        return handles[-1]

    yield open_it
    for handle in handles:
        os.close(handle)


def age(path, seconds=2 * portable.GRACE_S):
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.usefixtures("either")
class TestLocks:
    def test_a_locked_file_is_refused_to_another_handle(self, opened, tmp_path):
        first = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
        second = opened()
        assert portable.lock_file(first) is True
        assert portable.lock_file(second) is False
        os.close(first)
        assert portable.lock_file(second) is True

    def test_a_locked_file_is_refused_to_another_process(self, opened, tmp_path):
        code = (
            "import os, sys; from morphkv_cpp import portable\n"
            "print(portable.lock_file(os.open(sys.argv[1], os.O_RDWR)), flush=True); sys.stdin.read()"
        )
        handle, pipe = opened(), subprocess.PIPE
        command = [sys.executable, "-c", code, str(tmp_path / "x")]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=tmp_path) as holder:
            assert holder.stdout.readline() == "True\n"
            assert portable.lock_file(handle) is False
            holder.kill()
            holder.wait()
        assert portable.lock_file(handle) is True

    def test_what_is_locked_is_written_and_read_by_all(self, opened):
        first, second = opened(), opened()
        os.write(first, b"abc")
        portable.lock_file(first)
        assert os.write(first, b"def") == 3
        assert os.read(second, 9) == b"abcdef"


@pytest.mark.skipif(sys.platform == "win32", reason="fakes a module of another system")
class TestLocksOfOneSystem:
    def test_windows_locks_a_byte_beyond_the_content(self, windows, opened):
        portable.lock_file(opened())
        assert windows == [(2**31 - 2, 1)]

    def test_where_windows_cannot_lock(self, windows, opened, monkeypatch):
        def fail(*_):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(sys.modules["msvcrt"], "locking", fail)
        assert portable.lock_file(opened()) is None

    def test_where_posix_cannot_lock(self, opened, monkeypatch):
        def fail(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(LOCK_EX=2, LOCK_NB=4, flock=fail))
        assert portable.lock_file(opened()) is None


class TestReplace:
    @pytest.fixture
    def pauses(self, monkeypatch):
        res = []
        monkeypatch.setattr(portable.time, "sleep", res.append)
        return res

    @pytest.fixture
    def fail(self, monkeypatch):
        """Let os.replace() fail so many times."""

        def fail(n_times, error=PermissionError):
            replace, calls = os.replace, []

            def failing(source, target):
                calls.append(source)
                if len(calls) <= n_times:
                    raise error(13, "The process cannot access the file")
                replace(source, target)

            monkeypatch.setattr(os, "replace", failing)
            return calls

        return fail

    @pytest.fixture
    def paths(self, tmp_path):
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "old").write_bytes(b"old")
        return tmp_path / "new", tmp_path / "old"

    def test_windows_waits_for_a_virus_scanner(self, windows, paths, pauses, fail):
        fail(3)
        portable.replace(*paths)
        assert paths[1].read_bytes() == b"new"
        assert pauses == [0.01, 0.02, 0.05]

    def test_windows_gives_up_after_a_second(self, windows, paths, pauses, fail):
        fail(99)
        with pytest.raises(PermissionError):
            portable.replace(*paths)
        assert 0.9 < sum(pauses) < 1.1
        assert paths[1].read_bytes() == b"old"

    def test_other_errors_are_told_at_once(self, windows, paths, pauses, fail):
        calls = fail(99, FileNotFoundError)
        with pytest.raises(FileNotFoundError):
            portable.replace(*paths)
        assert (len(calls), pauses) == (1, [])

    def test_posix_does_not_wait(self, paths, pauses, fail, monkeypatch):
        monkeypatch.setattr(portable, "IS_WINDOWS", False)
        calls = fail(99)
        with pytest.raises(PermissionError):
            portable.replace(*paths)
        assert (len(calls), pauses) == (1, [])


@needs_proc
class TestWholeFilesOnWindows:
    """No file is renamed or removed there while it is open."""

    @pytest.fixture(autouse=True)
    def _windows(self, windows):
        pass

    def test_a_file_is_replaced(self, tmp_path):
        (tmp_path / "x").write_bytes(b"old")
        whole_file.replace_file(tmp_path / "x", [b"new ", b"bytes"])
        assert os.listdir(tmp_path) == ["x"]
        assert (tmp_path / "x").read_bytes() == b"new bytes"

    def test_what_fails_leaves_the_old_one(self, tmp_path):
        def blocks():
            yield b"new"
            raise KeyboardInterrupt

        (tmp_path / "x").write_bytes(b"old")
        with pytest.raises(KeyboardInterrupt):
            whole_file.replace_file(tmp_path / "x", blocks())
        assert os.listdir(tmp_path) == ["x"]
        assert (tmp_path / "x").read_bytes() == b"old"

    def test_left_overs_are_removed_once_they_are_old(self, tmp_path):
        left = tmp_path / ".x.12345678.morphkv"
        left.write_bytes(b"half")
        whole_file.replace_file(tmp_path / "x", [b"new"])
        assert sorted(os.listdir(tmp_path)) == [left.name, "x"]
        age(left)
        whole_file.replace_file(tmp_path / "x", [b"new"])
        assert os.listdir(tmp_path) == ["x"]

    def test_what_another_writes_is_left_alone(self, opened, tmp_path):
        path = tmp_path / ".x.12345678.morphkv"
        assert portable.lock_file(opened(path.name))
        age(path)
        whole_file.replace_file(tmp_path / "x", [b"new"])
        assert sorted(os.listdir(tmp_path)) == [path.name, "x"]

    def test_a_slow_writer_keeps_its_file_until_it_is_renamed(self, tmp_path, monkeypatch):
        """It is not locked then."""
        rename, seen = portable.replace, []

        def replace(source, target):
            portable.remove_unlocked(source)
            seen.append(os.path.exists(source))
            rename(source, target)

        monkeypatch.setattr(portable, "replace", replace)
        monkeypatch.setattr(os, "fsync", lambda _: [age(path) for path in tmp_path.glob(".x.*")])
        whole_file.replace_file(tmp_path / "x", [b"new"])
        assert seen == [True]
        assert (tmp_path / "x").read_bytes() == b"new"

    def test_a_link_is_no_left_over(self, tmp_path):
        (tmp_path / "outside").write_bytes(b"mine")
        age(tmp_path / "outside")
        (tmp_path / "link").symlink_to(tmp_path / "outside")
        os.utime(tmp_path / "link", (1, 1), follow_symlinks=False)
        with pytest.raises(OSError, match="is no regular file"):
            portable.remove_unlocked(tmp_path / "link")
        assert (tmp_path / "outside").read_bytes() == b"mine"

    def test_no_folder_is_opened(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("Windows opens no folders"))
        portable.sync_folder(tmp_path)


class TestPrograms:
    def test_where_a_process_becomes_another(self, monkeypatch):
        became = []

        def execv(path, command):
            became.append((path, command))
            raise SystemExit

        monkeypatch.setattr(portable, "IS_WINDOWS", False)
        monkeypatch.setattr(os, "execv", execv)
        with pytest.raises(SystemExit):
            portable.run_in_place(("a", "-b"))
        assert became == [("a", ["a", "-b"])]

    def test_where_none_does_its_exit_code_is_ours(self, windows, monkeypatch):
        monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("a shell no longer waits for us"))
        assert portable.run_in_place([sys.executable, "-c", "raise SystemExit(7)"]) == 7

    def test_signals_are_handled_as_before(self):
        numbers = [signal.SIGTERM, signal.SIGINT]
        before = [signal.getsignal(number) for number in numbers]
        portable.run_and_wait([sys.executable, "-c", ""])
        with pytest.raises(FileNotFoundError):
            portable.run_and_wait(["/no/such/program"])
        assert [signal.getsignal(number) for number in numbers] == before

    @pytest.mark.parametrize("code, ours", [(0, 0), (7, 7), (-15, 143), (0xC000013A, -1073741510), (2**32 - 1, -1)])
    def test_exit_codes_of_both_systems(self, monkeypatch, code, ours):
        """0xC000013A: Windows' Ctrl-C. Of what fits no C int sys.exit() makes another."""
        child = SimpleNamespace(wait=lambda: code)
        monkeypatch.setattr(subprocess, "Popen", lambda _: child)
        assert portable.run_and_wait(["x"]) == ours

    def test_names(self, windows, monkeypatch):
        assert portable.program_file("llama-server") == "llama-server.exe"
        monkeypatch.setattr(portable, "IS_WINDOWS", False)
        assert portable.program_file("llama-server") == "llama-server"


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a group of processes")
class TestSignals:
    CODE = """
import sys
from morphkv_cpp import portable
sys.exit(portable.run_and_wait([sys.executable, "-c", sys.argv[1]]))
"""
    # Tells how many came.
    CHILD = """
import signal, sys, time
n = 0
def count(*_):
    global n
    n += 1
signal.signal(signal.{name}, count)
print("running", flush=True)
while n == 0:
    time.sleep(0.01)
time.sleep(0.5)
print(n, flush=True)
sys.exit(9)
"""

    @pytest.fixture
    def start(self, tmp_path):
        def start(name):
            command = [sys.executable, "-c", self.CODE, self.CHILD.format(name=name)]
            pipe = subprocess.PIPE
            child = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
            assert child.stdout.readline() == "running\n"
            return child

        return start

    def test_ctrl_c_reaches_the_program_once(self, start):
        """A console sends it to both."""
        child = start("SIGINT")
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (9, "1\n", "")

    def test_who_ends_us_ends_the_program(self, start):
        child = start("SIGTERM")
        child.terminate()
        out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (9, "1\n", "")

    def test_a_program_that_a_signal_ended_is_told_as_shells_do(self, start):
        child = start("SIGINT")
        child.terminate()
        assert child.communicate(timeout=30) == ("", "")
        assert child.returncode == 128 + signal.SIGTERM


class TestStreams:
    TEXT = "\u00dcbung \u6587"

    @pytest.fixture
    def use_utf8(self, monkeypatch):
        """Call it with pipes in Windows' code page for western Europe; the streams as they are then."""
        monkeypatch.delenv("PYTHONIOENCODING", raising=False)

        def use_utf8():
            # pytest has streams of its own for each part of a test
            with monkeypatch.context() as patch:
                for name in ("stdin", "stdout", "stderr"):
                    data = io.BytesIO(self.TEXT.encode() if name == "stdin" else b"")
                    patch.setattr(sys, name, io.TextIOWrapper(data, encoding="cp1252"))
                portable.use_utf8()
                return sys.stdin, sys.stdout, sys.stderr

        return use_utf8

    def test_pipes_of_windows_are_utf_8(self, windows, use_utf8):
        stdin, *outs = use_utf8()
        assert stdin.read() == self.TEXT
        for out in outs:
            out.write(self.TEXT)
            out.flush()
            assert out.buffer.getvalue() == self.TEXT.encode()

    def test_what_the_user_says_counts_more(self, windows, use_utf8, monkeypatch):
        monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
        assert [stream.encoding for stream in use_utf8()] == ["cp1252"] * 3

    def test_elsewhere_they_stay_what_they_are(self, use_utf8, monkeypatch):
        monkeypatch.setattr(portable, "IS_WINDOWS", False)
        assert [stream.encoding for stream in use_utf8()] == ["cp1252"] * 3
