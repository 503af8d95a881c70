"""On what machine, and with which versions, something was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from morphkv_cpp.info import info


def machine() -> dict[str, Any]:
    """The processor, its cores, and versions; names no path."""
    found = info()
    return {
        "cpu": _cpu(),
        "n_cores": os.cpu_count(),
        "devices": [device.description for device in found.devices if device.is_gpu],
        "system": platform.system(),
        "python": platform.python_version(),
        "morphkv_cpp": found.version,
        "abi": found.abi_version,
        "llama_cpp_python": found.upstream_version,
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _commit() -> str | None:
    """Of the repository that the command is run in; with a plus where something was changed."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
