"""What several tests use: twins of the native cache, servers, worlds with faults."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]  # where `python -m support.X` finds this package
