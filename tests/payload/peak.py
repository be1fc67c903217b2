"""The most memory that this process has had: what it may take is a promise of its own."""

from __future__ import annotations

from pathlib import Path


def peak() -> int:
    """Bytes. Not `ru_maxrss`, which a process inherits from the one that has started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
