"""A model file is known by its contents."""

import numpy as np

from morphkv_cpp.cache.fingerprint import model_fingerprint


class TestFingerprint:
    def test_it_is_that_of_the_contents_whatever_the_name(self, tmp_path):
        data = np.random.default_rng(0).bytes(1 << 20)
        (tmp_path / "a").write_bytes(data)
        (tmp_path / "b").write_bytes(data)
        assert model_fingerprint(tmp_path / "a") == model_fingerprint(tmp_path / "b")
        for other in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), bytes([data[0] ^ 1]) + data[1:]):
            (tmp_path / "b").write_bytes(other)
            assert model_fingerprint(tmp_path / "a") != model_fingerprint(tmp_path / "b")

    def test_small_files_have_one(self, tmp_path):
        prints = set()
        for data in (b"", b"a", b"b", bytes(5000)):
            (tmp_path / "a").write_bytes(data)
            prints.add(model_fingerprint(tmp_path / "a"))
        assert len(prints) == 4
