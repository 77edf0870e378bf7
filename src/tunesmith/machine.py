"""What this machine has: memory, processors, devices, and instructions for the kernels."""

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

CONTAINER = Path("/sys/fs/cgroup")
"""What the system says of the container that this runs in."""


def free_memory(device: Any = "cpu") -> int | None:
    """Bytes that can still be taken on a device; None where the system doesn't tell."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no limit
        limit, used = (int((CONTAINER / file).read_text()) for file in ("memory.max", "memory.current"))
        kinds = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        free.append(limit - used + int(kinds["inactive_file"]))  # files that were read give way
    return min(free, default=None)


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """For people who ask why it is slow, and for reports of mistakes."""
    from importlib.metadata import version

    import torch

    from tunesmith.nn import engine

    free = free_memory()
    return {
        "tunesmith": version("tunesmith"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processors": processors(),
        "threads": torch.get_num_threads(),
        "gigabytes_free": None if free is None else round(free / 1e9, 1),
        "cpu_kernels": engine.instructions()
        or "none: no C++ compiler was there at installation; models stay at float32",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
