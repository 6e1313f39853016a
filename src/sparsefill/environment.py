"""What this machine and installation are: shown by `info`, stored beside results."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

CPU_FEATURES = (  # those that decide how fast attention can be
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "bf16",
)


def describe_environment() -> dict[str, Any]:
    """Describe versions, CPU and accelerators as plain data.

    Example:
        >>> sorted(describe_environment())[:3]
        ['accelerators', 'cpu', 'cpu_features']
    """
    return {
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_features": cpu_features(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "accelerators": accelerators(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for name in ("sparsefill", "torch", "transformers", "numpy", "triton"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def accelerators() -> list[dict[str, Any]]:
    """List the CUDA or HIP devices that torch sees."""
    if not torch.cuda.is_available():
        return []
    listed = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        listed.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return listed


def cpu_features() -> list[str]:
    """List the vector features of the CPU that matter to attention."""
    flags = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
    if not flags:  # no /proc/cpuinfo: what torch found is all that is known
        return [torch.backends.cpu.get_cpu_capability().lower()]
    return [feature for feature in CPU_FEATURES if feature in flags]


def fast_bfloat16(device: str) -> bool:
    """Tell whether bfloat16 matrix products are faster than float32 on a device."""
    if device != "cpu":
        return True
    return bool({"avx512_bf16", "amx_bf16"} & set(cpu_features()))


def peak_bytes() -> int:
    """Return the most memory that was used so far: of the accelerator, else resident.

    On Linux `getrusage` would tell the peak of whoever started this process, if that is larger.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text("ascii").splitlines()
        own = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
        if own is not None:
            return own * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # bytes there, KiB elsewhere


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, or nothing where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    for line in path.read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _memory_bytes() -> int | None:
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
