"""The types of the loaded library are those of its header."""

import ast
import re
from pathlib import Path

import morphkv_cpp
from morphkv_cpp.bridge import native
from morphkv_cpp.bridge.header import declarations
from morphkv_cpp.bridge.library import HEADER

FUNCTION = re.compile(r"(morphkv_\w+)\(([^()]*)\)")
STUB = Path(native.__file__).with_suffix(".pyi")


def stub_class(name: str) -> ast.ClassDef:
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def test_every_function_has_its_parameters():
    header = re.sub(r"\s+", " ", declarations(HEADER.read_text(encoding="utf-8")))
    declared = {name: 0 if args.strip() == "void" else args.count(",") + 1 for name, args in FUNCTION.findall(header)}
    typed = {
        node.name: [arg.arg for arg in node.args.args[1:]]
        for node in stub_class("Lib").body
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: len(names) for name, names in typed.items()} == declared
    assert len(declared) > 25


def test_every_function_is_in_the_library():
    for node in stub_class("Lib").body:
        assert hasattr(native.lib, node.name if isinstance(node, ast.FunctionDef) else node.target.id)
    for node in stub_class("FFI").body:
        assert hasattr(native.ffi, node.name if isinstance(node, ast.FunctionDef) else node.target.id)


def test_the_package_says_that_it_is_typed():
    assert [folder for folder in morphkv_cpp.__path__ if (Path(folder) / "py.typed").is_file()]
