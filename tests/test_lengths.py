"""No file is longer than a reader takes in at once; what is names its reason here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What is measured, and how many lines each may have; the first pattern that fits counts.
LIMITS = {
    "tests/**/*.py": 500,
    "tests/**/*.cpp": 500,
    "tests/**/*.h": 250,
    "morphkv_cpp/**/*.py": 300,
    "bridge/**/*.py": 300,
    "models/**/*.py": 300,
    "native/scripts/**/*.py": 300,
    "native/**/*.cpp": 400,
    "native/**/*.cu": 400,
    "native/**/*.h": 250,
}
LONGER = {
    "native/include/morphkv.h": "the C API is one header, with what each function promises",
    "native/src/llama/memory.h": "one class implements the whole of llama_memory_i",
}


def lengths(root: Path) -> dict[str, tuple[int, int]]:
    """Of each file, its lines and how many it may have."""
    res: dict[str, tuple[int, int]] = {}
    for pattern, limit in LIMITS.items():
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            res.setdefault(name, (len(path.read_text(encoding="utf-8").splitlines()), limit))
    return res


def too_long(root: Path) -> list[str]:
    return [name for name, (n_lines, limit) in lengths(root).items() if n_lines > limit]


def test_only_files_with_a_reason_are_too_long():
    assert len(lengths(ROOT)) > 200  # they were looked at
    assert set(too_long(ROOT)) == set(LONGER)


def test_a_file_that_is_too_long_is_named(tmp_path):
    files = {"bridge/a.py": 300, "bridge/b.py": 301, "tests/x/test_a.py": 500, "native/src/a.h": 251}
    for name, n_lines in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n" * n_lines)
    assert too_long(tmp_path) == ["bridge/b.py", "native/src/a.h"]
