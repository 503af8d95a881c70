"""One hierarchy of exceptions."""

import builtins
import inspect

import pytest

import morphkv_cpp
from morphkv_cpp import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_each_is_a_morphkv_error_and_of_a_standard_type(name):
    error = getattr(errors, name)
    assert getattr(morphkv_cpp, name) is error
    assert issubclass(error, morphkv_cpp.MorphKVError)
    if error is not morphkv_cpp.MorphKVError:
        standard = [base for base in error.__mro__ if getattr(builtins, base.__name__, None) is base]
        assert {base.__name__ for base in standard} & {"RuntimeError", "ValueError", "ImportError"}


def test_all_are_listed():
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert defined == set(errors.__all__)
