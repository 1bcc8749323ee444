"""The process's peak memory."""

import sys
from contextlib import suppress
from pathlib import Path


def peak_memory() -> float:
    """The process's highest resident memory since the last reset, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # Windows does not have it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def reset_peak_memory() -> float:
    """Forgets an earlier peak (of imports, say), where the system can.

    Returns:
        The present peak in MB, from which later ones are counted.
    """
    with suppress(OSError):  # elsewhere a peak before the start counts as the start
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()
