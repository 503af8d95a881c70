"""CMakePresets.json: CMake takes it, and no preset sets what nobody reads."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRESETS = json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))
CONFIGURE = {preset["name"]: preset for preset in PRESETS["configurePresets"]}
# option(NAME ...), or set(NAME value CACHE ...)
OPTION = re.compile(r"^\s*(?:option\s*\(\s*(\w+)|set\s*\(\s*(\w+)[^()]*\bCACHE\b)", re.MULTILINE)


def run(*command):
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def options_of(texts):
    return {name for text in texts for found in OPTION.findall(text) for name in found if name}


@pytest.fixture(scope="module")
def options():
    """Those of our CMake files, and of the pinned llama.cpp's."""
    ours = [ROOT / "CMakeLists.txt", *ROOT.glob("native/**/CMakeLists.txt"), *ROOT.glob("native/**/*.cmake")]
    sdist = subprocess.run(
        [sys.executable, ROOT / "native/scripts/fetch_upstream.py"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    theirs = []
    with tarfile.open(sdist) as archive:
        for member in archive:
            if "/vendor/llama.cpp/" in member.name and member.name.endswith("CMakeLists.txt"):
                theirs.append(archive.extractfile(member).read().decode())
    return options_of(path.read_text(encoding="utf-8") for path in ours), options_of(theirs)


def test_cmake_takes_the_file():
    listed = run("cmake", "--list-presets=all")
    # a preset of another system is not listed to be configured, but to be built
    assert {name for name in re.findall(r'^  "([\w-]+)"', listed, re.MULTILINE)} >= {
        preset["name"] for preset in PRESETS["buildPresets"]
    }


def test_the_version_is_that_of_the_oldest_cmake():
    """Version 3 of the file came with CMake 3.21."""
    least = re.search(r"cmake_minimum_required\(VERSION (\d+)\.(\d+)", (ROOT / "CMakeLists.txt").read_text())
    needed = PRESETS["cmakeMinimumRequired"]
    assert (needed["major"], needed["minor"]) == tuple(map(int, least.groups())) == (3, 21)
    assert PRESETS["version"] == 3


@pytest.mark.parametrize("name", CONFIGURE)
def test_every_variable_is_an_option_that_somebody_reads(name, options):
    variables = CONFIGURE[name].get("cacheVariables", {})
    ours, theirs = options
    known = run("cmake", "--help-variable-list").splitlines()
    known = {name.replace("<LANG>", language) for name in known for language in ("C", "CXX")}
    assert {"MORPHKV_BUILD_TESTS", "GGML_RPC"} <= ours
    assert {"GGML_NATIVE", "LLAMA_BUILD_SERVER"} <= theirs
    unknown = [name for name in variables if name not in ours | theirs | known]
    assert not unknown


def test_a_preset_can_be_built_where_it_can_be_configured():
    assert {preset["configurePreset"] for preset in PRESETS["buildPresets"]} == {
        name for name, preset in CONFIGURE.items() if not preset.get("hidden")
    }
    for preset in CONFIGURE.values():
        assert (
            "toolchainFile" not in preset or Path(preset["toolchainFile"].replace("${sourceDir}", str(ROOT))).is_file()
        )
