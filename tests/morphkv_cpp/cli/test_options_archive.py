"""Options of an archive on the command line, and what is refused without one."""

import inspect
import subprocess
import sys
import warnings

import pytest
import typer
from typer.testing import CliRunner

from morphkv_cpp import Archive
from morphkv_cpp.cli.options import with_options
from morphkv_cpp.cli.options_archive import archive_options, archived


def chosen(*arguments: str, group=archive_options):
    """The archive that a command gets with these arguments."""
    got = []

    @with_options(archive=group)
    def command(archive) -> None:
        got.append(archive)

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return got[0]


def test_none_without_options():
    assert chosen() is None


def test_a_command_may_have_one_by_itself():
    group = archived(archive_options)
    assert chosen(group=group) == Archive("auto")
    assert chosen("--archive-max", "1", group=group) == Archive("auto", max_bytes=2**20)
    assert chosen("--archive", "ram", group=group) == Archive()
    assert chosen("--no-archive", group=group) is None
    with pytest.raises(ValueError, match="--no-archive excludes --archive, got 'ram'"):
        chosen("--no-archive", "--archive", "ram", group=group)
    with pytest.raises(ValueError, match="--recall-share: needs an archive"):
        chosen("--no-archive", "--recall-share", "0.5", group=group)


def test_files_are_attached_beside_an_archive():
    assert chosen("--attach", "a", "--attach", "b") == Archive("auto", attach=["a", "b"])
    assert chosen("--archive", "ram", "--attach", "a") == Archive("ram", attach=["a"])
    assert chosen("--attach", "a", group=archived(archive_options)) == Archive("auto", attach=["a"])
    with pytest.raises(ValueError, match=r"--no-archive excludes --attach, got \['a'\]"):
        chosen("--no-archive", "--attach", "a", group=archived(archive_options))


def test_defaults_are_those_of_python():
    assert chosen("--archive", "ram") == Archive()
    assert chosen("--archive", "a b") == Archive("a b")


@pytest.mark.parametrize("group", [archive_options, archived(archive_options)])
def test_off_is_no_place(group):
    with pytest.raises(ValueError, match=r"--archive must be auto, ram or a path, got off: .* say --no-archive"):
        chosen("--archive", "off", group=group)
    assert chosen("--archive", "./off", group=group) == Archive("./off")


def test_each_option_reaches_its_field():
    wanted = Archive("x", type="q8_0", max_bytes=5 * 2**20, recall=3, share=0.5, redo=7, votes=9, distance=11)
    arguments = "--archive x --archive-type q8_0 --archive-max 5 --recall 3 --recall-share 0.5 --recall-redo 7"
    assert chosen(*arguments.split(), "--recall-votes", "9", "--recall-distance", "11") == wanted
    assert chosen("--archive", "ram", "--archive-max", "0").max_bytes == 0
    assert chosen("--archive", "ram", "--recall", "off").recall == "off"


@pytest.mark.parametrize(
    "option",
    # each as its default, which somebody who gives it wants heeded all the same
    [
        "--archive-type f16",
        "--archive-max 2048",
        "--recall auto",
        "--recall-share 0.2",
        "--recall-redo 128",
        "--recall-votes 0",
        "--recall-distance 256",
    ],
)
def test_an_option_without_an_archive_is_refused(option):
    with pytest.raises(ValueError, match="needs an archive"):
        chosen(*option.split())


def test_bytes_are_an_option_of_old():
    with pytest.warns(DeprecationWarning, match="--archive-max-bytes is now --archive-max, in MiB"):
        assert chosen("--archive", "ram", "--archive-max-bytes", "12345").max_bytes == 12345
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="--archive-max replaces --archive-max-bytes, got both, the latter with 5"):
            chosen("--archive", "ram", "--archive-max", "1", "--archive-max-bytes", "5")


def test_who_gives_an_option_of_old_is_told(tiny_llama, tmp_path):
    code = "import sys; from morphkv_cpp.cli.app import main; main(sys.argv[1:])"
    arguments = ["generate", str(tiny_llama()), "abc", "-n", "1", "-t", "1", "--archive", "ram", "--archive-max-bytes"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments, "9999999"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--archive-max-bytes is now --archive-max, in MiB" in result.stderr


def test_every_field_has_an_option():
    names = set(inspect.signature(archive_options).parameters)
    assert names == {"archive", "attach", "archive_type", "archive_max", "archive_max_bytes"} | {
        f"recall{name}" for name in ("", "_share", "_redo", "_votes", "_distance")
    }
