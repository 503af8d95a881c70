"""Every operation of Python with every call of the archive to its store failing: see tests/support/store_faults.py."""

import json
import subprocess
import sys

import pytest

# isort: split
from support import TESTS, store_faults


@pytest.mark.parametrize("place", ["ram", "file"])
@pytest.mark.parametrize("operation", store_faults.OPERATIONS)
def test_a_store_that_fails_ends_nothing_and_changes_no_answer(tiny_llama, tmp_path, operation, place, record_property):
    command = [sys.executable, "-m", "support.store_faults", operation, place, str(tiny_llama()), str(tmp_path)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)
    print(f"{operation}, {place}: {counts}")
    record_property("cases", counts["cases"])
    assert counts["cases"] == counts["calls"] * len(store_faults.ERRORS[place])
    # some touch no store
    assert counts["cases"] > 0 or operation == "close" or (operation, place) == ("reopen", "ram")
