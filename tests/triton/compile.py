"""Compile Triton kernels for GPUs that are not here, and read what came out.

Inside `with compile_for(target) as compiled:` the library's own launchers run on tensors of
the `meta` device: each launch is specialised and compiled exactly as on that GPU, and
nothing is launched. ptxas, cuobjdump and nvdisasm come with Triton.

It uses private parts of Triton; the tests that rely on it fail where it has no effect.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMITS = {  # bytes that a block may have: CUDA C++ programming guide, AMD CDNA 3 ISA
    "sm_80": 166912,
    "sm_90": 232448,
    "sm_100": 232448,
    "gfx942": 65536,
}
OPCODE = r"^\s*(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Launch(NamedTuple):
    """One launch that was compiled."""

    name: str
    grid: tuple[int, ...]
    kernel: Any


@dataclass(frozen=True)
class Report:
    """What the compiler made of a kernel.

    Args:
        registers: of a thread.
        stack: bytes of a thread: what spilled.
        shared: bytes of a block.
        instructions: how often each opcode occurs, with and without its modifiers.
    """

    registers: int
    stack: int
    shared: int
    warps: int
    instructions: Counter[str]


REPORTS: dict[str, Report] = {}  # by the hash of a kernel: two programs read each, in a second
Driver: Any = DriverBase


class StubDriver(Driver):
    """A driver of a GPU that is not here."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "void*"

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise AssertionError("nothing can be timed without a GPU")

    def get_current_device(self) -> int:
        return hash((self.target.backend, self.target.arch)) % 10**6  # kernels are cached by it

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass


@contextmanager
def compile_for(name: str) -> Iterator[list[Launch]]:
    """Compile instead of launching, for one of `TARGETS`."""
    compiled: list[Launch] = []
    launch: Any = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        compiled.append(Launch(self.fn.__name__, tuple(grid), kernel))
        return kernel

    replaced: Any = JITFunction
    replaced.run = compile_only
    driver.set_active(StubDriver(TARGETS[name]))
    try:
        yield compiled
    finally:
        replaced.run = launch
        inner: Any = driver
        inner._active = None


def report(launch: Launch) -> Report:
    """Read registers, spills, shared memory and instructions of a compiled kernel."""
    kernel = launch.kernel
    if kernel.hash not in REPORTS:
        REPORTS[kernel.hash] = _report(kernel)
    return REPORTS[kernel.hash]


def _report(kernel: Any) -> Report:
    metadata, asm = kernel.metadata, kernel.asm
    if "amdgcn" in asm:
        listing = asm["amdgcn"]
        opcodes = re.findall(r"^\s+([a-z]\w+)", listing, re.MULTILINE)
        registers, stack = (
            max(int(value) for value in re.findall(rf"\.{field}:\s+(\d+)", listing))
            for field in ("vgpr_count", "vgpr_spill_count")
        )
    else:
        listing, usage = disassemble(asm["cubin"])
        opcodes = re.findall(OPCODE, listing, re.MULTILINE)
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert found is not None, usage
        registers, stack = int(found[1]), int(found[2])
    counts = Counter(opcodes)
    counts.update(opcode.partition(".")[0] for opcode in opcodes if "." in opcode)
    return Report(registers, stack, metadata.shared, metadata.num_warps, counts)


def disassemble(cubin: bytes) -> tuple[str, str]:
    """Return the machine code of a kernel as text, and what it uses."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        listing, usage = (
            subprocess.run(
                [str(TOOLS / command[0]), *command[1:], file.name],
                capture_output=True, text=True, check=True,
            ).stdout
            for command in commands
        )  # fmt: skip
    return listing, usage
