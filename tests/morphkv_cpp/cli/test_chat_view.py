"""What a chat shows of its cache."""

from dataclasses import fields

import numpy as np

from morphkv_cpp import CacheStats, Turn
from morphkv_cpp.cli.chat_view import N_PLACES, pictures, printable, status_line

STATS = CacheStats(
    **{field.name: 0 for field in fields(CacheStats)} | {"n_used": 412, "n_limit": 512, "n_evictions": 21}
)
TURN = Turn(10, 0, 20, "stop", 0, False, 1.0, 38.24)


def test_the_status_line_is_short():
    assert status_line(None, None) == "nothing said yet"
    assert status_line(STATS, None) == "412/512 cells | position 0 | 21 evictions"
    assert status_line(STATS, TURN) == "412/512 cells | position 0 | 38.2 tok/s | 21 evictions"


def test_what_a_model_writes_cannot_steer_a_terminal():
    assert printable("a\x1b[2Jb\r\x07\x9b1mc\td\n\u00e9\x7f") == "a[2Jb1mc\td\n\u00e9"


def test_a_picture_shows_where_tokens_are():
    whole, half, none = np.arange(128), np.arange(0, 128, 2), np.full(128, -1)
    positions = np.array([whole, np.concatenate([half, none[:64]]), none])
    first, second, third = pictures(positions, 128)
    assert first == "#" * N_PLACES
    assert len(set(second)) == 1
    assert second not in (first, third)
    assert third == " " * N_PLACES
    recent = np.concatenate([np.arange(64, 128), none[:64]])[None]
    assert pictures(recent, 128) == [" " * 32 + "#" * 32]
