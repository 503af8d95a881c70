"""What an extra installs is asked for by its name."""

import pytest

from morphkv_cpp.extras import needs_extra


def test_a_missing_library_names_the_extra():
    with (
        pytest.raises(ModuleNotFoundError, match=r"^no_such_library is needed .* pip install 'morphkv_cpp\[bench\]'$"),
        needs_extra("bench"),
    ):
        import no_such_library  # noqa: F401


def test_other_errors_are_left_alone():
    with pytest.raises(ZeroDivisionError), needs_extra("bench"):
        _ = 1 / 0
