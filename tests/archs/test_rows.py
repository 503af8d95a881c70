"""Layers that attend to another layer's K and V have a say in what it keeps."""

from __future__ import annotations

import pytest

morphkv_cpp = pytest.importorskip("morphkv_cpp")

from archs import more_models, run, variants  # noqa: E402
from archs.rows import Rows  # noqa: E402

if run.programs() is None:
    pytest.skip("MORPHKV_TEST_PROGRAMS names no folder with morphkv-model-rows", allow_module_level=True)


@pytest.mark.parametrize(
    ("architecture", "variant", "layer", "readers"),
    [("gemma4", "shared K and V", 3, (5,)), ("gemma3n", "", 19, (24,)), ("gemma4", "no shared K and V", 3, ())],
)
def test_what_is_kept_is_what_all_readers_vote_for(tmp_path, architecture, variant, layer, readers):
    """20 evictions against plain loops over the queries of the model's graph, the most that any head gives counting."""
    model = variants.path_of(tmp_path, architecture, variant)
    more_models.write_model(model, architecture, variant)
    found = Rows(run.programs()).ask("votes", model, str(layer), *map(str, readers))
    assert found["n_choices"] >= 20
    # queries are F16 in the ring: choices closer than that may fall the other way
    assert found["worst_gap"] <= 0.01, found
    assert found["n_as_joined"] >= 0.8 * found["n_choices"], found
    if readers:
        assert found["n_as_owner"] <= 0.2 * found["n_choices"], found
