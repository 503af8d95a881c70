"""Who includes whom in native/src: core knows neither device nor llama, device no llama, and there is no circle."""

import re
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]', re.MULTILINE)

# Rooms of native/src, and the headers of upstream, that each must do without.
MUST_NOT_KNOW = {
    "include": ({"core", "device", "llama", "src"}, re.compile(r"(llama|ggml|gguf)\b.*")),
    "core": ({"device", "llama", "src"}, re.compile(r"(?!ggml\.h$)(llama|ggml|gguf)\b.*")),
    "device": ({"llama", "src"}, re.compile(r"llama\b.*")),
}


def room_of(path, native):
    """core, device or llama; src for what lies beside them; include for the headers of the C API."""
    parts = path.relative_to(native).parts
    return parts[1] if parts[0] == "src" and len(parts) > 2 else parts[0]


def includes_of(path, native):
    """Of each #include: its name, and the file of ours that it means or None."""
    for name in INCLUDE.findall(path.read_text()):
        found = (folder / name for folder in (path.parent, native / "src", native / "include"))
        yield name, next((file.resolve() for file in found if file.is_file()), None)


def circles_in(graph):
    """Files that include themselves by way of others, each circle once."""
    done, path, res = set(), [], []

    def visit(file):
        if file in path:
            res.append([*path[path.index(file) :], file])
        elif file not in done:
            path.append(file)
            for other in graph[file]:
                visit(other)
            done.add(path.pop())

    for file in sorted(graph):
        visit(file)
    return res


def broken_rules(native):
    native = native.resolve()
    files = sorted(path for top in ("src", "include") for path in (native / top).rglob("*") if path.is_file())
    graph, res = {file: [] for file in files}, []
    for file in files:
        rooms, upstream = MUST_NOT_KNOW.get(room_of(file, native), (set(), None))
        for name, included in includes_of(file, native):
            if included in graph:
                graph[file].append(included)
                is_right = room_of(included, native) not in rooms
            else:
                is_right = upstream is None or not upstream.fullmatch(Path(name).name)
            if not is_right:
                res.append(f"{file.relative_to(native)} must not include {name}")
    res += ["a circle: " + " -> ".join(file.name for file in circle) for circle in circles_in(graph)]
    return res


def test_no_include_of_native_breaks_a_rule():
    assert broken_rules(NATIVE) == []
    assert len(list((NATIVE / "src/core").glob("*.cpp"))) > 10  # they were looked at


# Right as it is; a test changes one file.
TREE = {
    "include/morphkv.h": "#include <stdint.h>\nstruct llama_context;",
    "src/core/text.h": "#include <vector>",
    "src/core/text.cpp": '#include "core/text.h"\n#include "ggml.h"\n#include "morphkv.h"\n// #include "llama.h"',
    "src/device/engine.h": '#include "core/text.h"\n#include "ggml-backend.h"',
    "src/llama/memory.h": '#include "device/engine.h"\n#include "llama-memory.h"',
    "src/hooks.cpp": '#include "llama/memory.h"',
}


def broken_with(folder, **changed):
    for name, text in {**TREE, **changed}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return broken_rules(folder)


def test_a_right_tree_breaks_no_rule(tmp_path):
    assert broken_with(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("src/core/plan.h", "device/engine.h"),
        ("src/core/plan.h", "../device/engine.h"),
        ("src/core/plan.h", "llama/memory.h"),
        ("src/core/plan.h", "llama.h"),
        ("src/core/plan.h", "llama-impl.h"),
        ("src/core/plan.h", "ggml-backend.h"),
        ("src/core/plan.h", "ggml-alloc.h"),
        ("src/core/plan.h", "ggml-cpp.h"),
        ("src/core/deeper/plan.h", "gguf.h"),
        ("src/device/stack.cpp", "llama/memory.h"),
        ("src/device/stack.cpp", "llama.h"),
        ("src/device/stack.cpp", "llama-context.h"),
        ("src/device/stack.cpp", "../../../src/llama-graph.h"),
        ("include/morphkv.h", "llama.h"),
        ("include/morphkv.h", "ggml.h"),
    ],
)
def test_a_room_that_knows_too_much_is_named(tmp_path, file, name):
    for quoted in (f'"{name}"', f"<{name}>"):
        assert broken_with(tmp_path, **{file: f"#pragma once\n  #  include {quoted}"}) == [
            f"{file} must not include {name}"
        ]


@pytest.mark.parametrize(
    ("changed", "circle"),
    [
        ({"src/core/text.h": '#include "text.h"'}, "text.h -> text.h"),
        (
            {"src/core/text.h": '#include "core/plan.h"', "src/core/plan.h": '#include "core/text.h"'},
            "plan.h -> text.h",
        ),
        (
            {
                "src/device/a.h": '#include "b.h"',
                "src/device/b.h": '#include "c.h"',
                "src/device/c.h": '#include "a.h"',
            },
            "a.h -> b.h -> c.h -> a.h",
        ),
    ],
)
def test_a_circle_is_named(tmp_path, changed, circle):
    (broken,) = broken_with(tmp_path, **changed)
    assert broken.startswith("a circle: ")
    assert circle in broken
