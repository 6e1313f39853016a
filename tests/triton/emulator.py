"""Run Gluon kernels for Hopper on the CPU, from their own source, in many orders.

A kernel's Python source is executed with stand-ins for Gluon's operations. The partitions of
`gl.warp_specialize` are threads of which one runs at a time; which one is drawn at every
operation that synchronises, with speeds drawn for each program. Copies (by the copy engine
and by `cp.async`) and matrix products end at random later times.

What happened before what is tracked: each access to shared memory is an event, a barrier
hands the events that its arrivals knew to those who wait for it, and an access that conflicts
with an event it does not know is a fault, in whatever order things came about. Others:

* partitions wait for ever; a barrier takes more arrivals than its count, or lets a wait
  through at a phase that is not its next one;
* a result is used before `warpgroup_mma_wait`; anything is in flight when the program ends;
* matrix units read what `cp.async` wrote without `fence_async_shared`;
* memory outside of a tensor; 32-bit overflow; results that are not stored exactly once.

It knows nothing of layouts, registers, alignment or time: see `compile.py` for the first three.
"""

from __future__ import annotations

import inspect
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor
from triton.experimental.gluon import language as gluon_language

from tests.triton.gluon_values import (
    DTYPES,
    OPERATIONS,
    FaultError,
    Pointer,
    Region,
    Tiles,
    Value,
    array,
)

DELAYS = (0, 0, 1, 2, 5, 20, 120)  # steps of the schedule until something in flight ends
SPEEDS = (0.03, 1.0, 1.0, 8.0)
LAYOUTS = ("BlockedLayout", "SliceLayout", "DotOperandLayout")
BOX = 64  # elements of a row that the copy engine writes at once (128 bytes)


class Barrier:
    """An mbarrier: a phase ends after some arrivals and all announced bytes."""

    def __init__(self) -> None:
        self.count = 0

    def init(self, count: int) -> None:
        self.count = self.missing = count
        self.bytes = self.phase = 0
        self.gathered: set[Any] = set()  # events that the arrivals of this phase knew
        self.known: set[Any] = set()  # and those of ended phases
        self.waited: dict[int, int] = {}  # phase that each partition saw end last

    def update(self, *, arrivals: int = 0, announced: int = 0, events: set[Any]) -> None:
        """Take arrivals, and bytes: announced ones count up, copied ones down."""
        if not self.count:
            raise FaultError("a barrier is used before it is initialised")
        if arrivals > self.missing:
            raise FaultError("a barrier takes more arrivals than its count")
        self.missing -= arrivals
        self.bytes += announced
        self.gathered |= events
        if self.missing == 0 and self.bytes == 0:
            self.known |= self.gathered
            self.gathered = set()
            self.missing = self.count
            self.phase += 1

    def waits(self, parity: int) -> bool:
        return self.phase % 2 == parity

    def pass_wait(self, partition: Partition, parity: int) -> None:
        """Let a wait through, if what ended is the phase after the last that was seen."""
        expected = self.waited.get(partition.number, -parity) + 1
        if self.phase != expected:
            raise FaultError(
                f"a wait returns at phase {self.phase} of a barrier, not at {expected}"
            )
        self.waited[partition.number] = self.phase
        partition.known |= self.known


class Slot:
    """A tile of shared memory, and the events that touched it."""

    def __init__(self, shape: list[int]) -> None:
        self.data = np.full(shape, np.nan, np.float32)
        self.written: set[Any] | None = None  # by the last copy; None before any
        self.by_threads = False  # through the proxy that matrix units do not see
        self.read: set[Any] = set()

    def begin_write(self, known: set[Any], events: set[Any], *, by_threads: bool) -> None:
        if not self.read <= known:
            raise FaultError("shared memory is overwritten while it may be read")
        if not (self.written or set()) <= known:
            raise FaultError("shared memory is overwritten while it may be written")
        self.data[...] = np.nan
        self.written, self.by_threads, self.read = events, by_threads, set()

    def begin_read(self, known: set[Any], event: Any, *, by_threads: bool) -> None:
        if self.written is None or not self.written <= known:
            raise FaultError("shared memory is read before its copy is known to have ended")
        fenced = {("fenced", written) for written in self.written}
        if self.by_threads and not by_threads and not fenced <= known:
            raise FaultError("matrix units read what cp.async wrote without a proxy fence")
        self.read.add(event)


class View:
    """A slot as an operation sees it."""

    def __init__(self, program: Program, dtype: Any, slot: Slot, data: np.ndarray) -> None:
        self.program, self.dtype, self.slot, self.data = program, dtype, slot, data

    def reshape(self, shape: list[int]) -> View:
        return View(self.program, self.dtype, self.slot, self.data.reshape(shape))

    def permute(self, order: list[int]) -> View:
        return View(self.program, self.dtype, self.slot, self.data.transpose(order))

    def load(self, layout: Any) -> Value:
        return self.program.load_shared(self)


class Slots:
    """Shared memory: tiles or barriers, one after the other."""

    def __init__(self, program: Program, dtype: Any, entries: list[Any]) -> None:
        self.program, self.dtype, self.entries = program, dtype, entries

    def index(self, place: Any) -> Any:
        if not 0 <= int(place) < len(self.entries):
            raise FaultError(f"slot {int(place)} of {len(self.entries)}")
        entry = self.entries[int(place)]
        return View(self.program, self.dtype, entry, entry.data) if self.dtype else entry


class Product:
    """A matrix product in flight; not a number before it was waited for."""

    def __init__(self, compute: Callable[[], np.ndarray], event: Any) -> None:
        self.compute, self.event = compute, event
        self.value: Value | None = None

    def end(self) -> None:
        if self.value is None:
            with np.errstate(all="ignore"):
                self.value = Value(self.compute())

    def __str__(self) -> str:
        return "a matrix product that was not waited for"


class Partition:
    """The warps that run one function of `warp_specialize`, as a thread."""

    def __init__(self, number: int, run: Callable[[], None]) -> None:
        self.number, self.run = number, run
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True
        self.known: set[Any] = set()
        self.products: deque[Product] = deque()
        self.copied: set[Any] = set()  # by its threads
        self.open_group: list[Any] = []
        self.groups: deque[list[Any]] = deque()
        self.done = False

    def check_ended(self) -> None:
        if self.products or self.open_group or self.groups:
            raise FaultError("a partition ends while products or copies of its own are in flight")


class Program:
    """One program of a launch: its shared memory, its partitions and what is in flight."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.slowness = self.random.choice((0, 1, 1, 3))
        self.flights: list[tuple[int, Callable[[], None]]] = []  # until which step, what ends then
        self.step = self.copies = 0  # copies: how many are in flight
        self.events = itertools.count()
        self.partitions: list[Partition] = []
        self.scheduler = threading.Semaphore(0)
        self.fault: BaseException | None = None
        self.outer = Partition(-1, lambda: None)  # what runs before the partitions do
        self.current = self.outer

    # -- schedule --

    def fly(self, land: Callable[[], None]) -> None:
        """Let something end at a random later step."""
        delay = self.random.choice(DELAYS) * self.slowness
        self.flights.append((self.step + delay, land))

    def land(self) -> None:
        """End what is due, in random order."""
        due = [land for until, land in self.flights if until <= self.step]
        self.flights = [flight for flight in self.flights if flight[0] > self.step]
        self.random.shuffle(due)
        for land in due:
            land()

    def specialise(self, functions: list[Any], warps: list[int], registers: list[int]) -> None:
        """Run the partitions to their end."""
        for number, (function, arguments) in enumerate(functions):
            self.partitions.append(Partition(number, partial(function, *arguments)))
        threads = [threading.Thread(target=self.live, args=(p,)) for p in self.partitions]
        speeds = [self.random.choice(SPEEDS) for _ in self.partitions]
        for thread in threads:
            thread.start()
        try:
            self.schedule(speeds)
        except BaseException as fault:
            self.fault = self.fault or fault
        for partition in self.partitions:
            partition.turn.release()
        for thread in threads:
            thread.join()
        if self.fault is not None:
            raise self.fault
        if self.copies:
            raise FaultError("the program ends while copies are in flight")

    def schedule(self, speeds: list[float]) -> None:
        while self.fault is None and not all(p.done for p in self.partitions):
            self.step += 1
            self.land()
            ready = [p for p in self.partitions if not p.done and p.ready()]
            if ready:
                weights = [speeds[p.number] for p in ready]
                self.current = self.random.choices(ready, weights)[0]
                self.current.turn.release()
                self.scheduler.acquire()
            elif self.flights:
                self.step = max(self.step, min(until for until, _ in self.flights) - 1)
            else:
                waiting = [p.number for p in self.partitions if not p.done]
                raise FaultError(f"partitions {waiting} wait for ever")

    def live(self, partition: Partition) -> None:
        """Be the thread of a partition."""
        partition.turn.acquire()
        try:
            if self.fault is None:
                partition.run()
                partition.check_ended()
        except BaseException as fault:
            self.fault = self.fault or fault
        partition.done = True
        self.scheduler.release()

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others run, and go on when ready."""
        partition = self.current
        if partition is self.outer:
            raise FaultError("synchronises outside of a partition")
        partition.ready = ready
        self.scheduler.release()
        partition.turn.acquire()
        if self.fault is not None:
            raise FaultError("another partition failed")

    # -- shared memory and barriers --

    def allocate(self, dtype: Any, shape: list[int], layout: Any) -> Any:
        if dtype is not DTYPES["int64"]:
            return Slots(self, dtype, [Slot(shape[1:]) for _ in range(shape[0])])
        barriers = [Barrier() for _ in range(shape[0])]
        return barriers[0] if len(shape) == 1 else Slots(self, None, barriers)

    def expect(self, barrier: Barrier, size: Any, pred: bool = True) -> None:
        self.pause()
        barrier.update(arrivals=1, announced=int(size), events=self.current.known)

    def arrive(self, barrier: Barrier, *, count: int = 1) -> None:
        self.pause()
        barrier.update(arrivals=count, events=self.current.known)

    def wait(self, barrier: Barrier, parity: Any) -> None:
        parity = int(parity)
        self.pause(lambda: not barrier.waits(parity))
        barrier.pass_wait(self.current, parity)

    # -- copies --

    def copy_tile(self, tiles: Tiles, place: list[Any], barrier: Barrier, view: View) -> None:
        """Let the copy engine write a tile, 128 bytes of each row at a time."""
        if list(view.data.shape) != tiles.block:
            raise FaultError(f"a tile of {tiles.block} is copied to {view.data.shape}")
        values = tiles.load([int(x) for x in place])
        boxes = range(0, tiles.block[-1], BOX)
        events = {next(self.events): first for first in boxes}
        view.slot.begin_write(self.current.known, set(events), by_threads=False)
        for event, first in events.items():
            columns = slice(first, first + BOX)
            self.copies += 1
            self.fly(partial(self.end_box, view.data[..., columns], values[..., columns],
                             barrier, event, tiles.dtype.primitive_bitwidth // 8))  # fmt: skip
        self.pause()

    def end_box(
        self, target: np.ndarray, values: np.ndarray, barrier: Barrier, event: Any, size: int
    ) -> None:
        target[...] = values
        self.copies -= 1
        barrier.update(announced=-values.size * size, events={event})

    def copy_rows(self, view: View, pointer: Pointer) -> None:
        """Let the threads copy elements, in the group that is open."""
        if view.data.shape != pointer.offset.shape:
            raise FaultError(f"{pointer.offset.shape} elements are copied to {view.data.shape}")
        everything = np.ones(pointer.offset.shape, bool)
        values = pointer.region.load(pointer.offset, everything, 0)
        partition, event = self.current, next(self.events)
        view.slot.begin_write(partition.known, {event}, by_threads=True)
        ended: list[bool] = []
        partition.open_group.append((event, ended))
        partition.copied.add(event)

        def end() -> None:
            view.data[...] = values
            self.copies -= 1
            ended.append(True)

        self.copies += 1
        self.fly(end)
        self.pause()

    def commit_group(self) -> None:
        self.current.groups.append(self.current.open_group)
        self.current.open_group = []

    def wait_group(self, allowed: int = 0) -> None:
        partition = self.current
        awaited = list(partition.groups)[: max(0, len(partition.groups) - allowed)]
        self.pause(lambda: all(ended for group in awaited for _, ended in group))
        for group in awaited:
            partition.known |= {event for event, _ in group}
            partition.groups.popleft()

    def fence(self) -> None:
        """Show the matrix units what the threads of this partition know to have written."""
        partition = self.current
        partition.known |= {("fenced", event) for event in partition.copied & partition.known}

    # -- products --

    def load_shared(self, view: View) -> Value:
        event = next(self.events)
        view.slot.begin_read(self.current.known, event, by_threads=True)
        self.current.known.add(event)
        return Value(view.data.copy(), view.dtype)

    def multiply(
        self, a: Value, b: View, acc: Any, *, use_acc: bool = True, is_async: bool = False
    ) -> Any:
        """Begin a product of registers with shared memory, which it reads until it ends."""
        event = next(self.events)
        b.slot.begin_read(self.current.known, event, by_threads=False)
        left, start = array(a), array(acc) if use_acc else np.float32(0)
        product = Product(lambda: start + left @ b.data, event)
        self.current.products.append(product)
        self.fly(product.end)
        self.pause()
        return product if is_async else self.wait_products(0, [product])

    def wait_products(self, allowed: int = 0, deps: Any = None) -> Any:
        self.pause()
        partition = self.current
        while len(partition.products) > allowed:
            product = partition.products.popleft()
            product.end()
            partition.known.add(product.event)
        waited = [
            d.value if isinstance(d, Product) and d not in partition.products else d for d in deps
        ]
        return waited[0] if len(waited) == 1 else tuple(waited)


class Emulator:
    """Launches a Gluon kernel on the CPU: `Emulator(modules, "kernel", seed)[grid](...)`.

    Args:
        modules: where the kernel and the functions that it calls are; of two that have the
            same name, the last one counts.
    """

    def __init__(self, modules: Sequence[ModuleType], kernel: str, seed: int) -> None:
        self.kernel, self.seed = kernel, seed
        self.names = {name: x for module in modules for name, x in vars(module).items()}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *arguments: Any, num_warps: int, **constants: Any):
        """Run every program; raise if anything is wrong."""
        regions: dict[Any, Region] = {}

        def region(tensor: Tensor) -> Region:
            key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
            return regions.setdefault(key, Region(tensor))

        def convert(x: Any) -> Any:
            if isinstance(x, Tensor):
                return Pointer(region(x))
            if isinstance(x, (int, float)):
                return Value(x)
            return x if x is None else Tiles(x, region(x.base))

        values = [convert(x) for x in arguments]
        inspect.signature(self.names[self.kernel].fn).bind(*values, **constants)
        for program in range(grid[0]):
            self.run(program, grid[0], values, constants)
        for own in regions.values():
            own.check_stored()

    def run(self, number: int, count: int, values: list[Any], constants: dict[str, Any]) -> None:
        program = Program(hash((self.seed, number)))
        names = stand_ins(self.names, program, number, count)
        names[self.kernel](*values, **constants)


def stand_ins(own: dict[str, Any], program: Program, number: int, count: int) -> dict[str, Any]:
    """Return the names that a kernel sees, with Gluon's replaced by the emulator's."""
    names: dict[str, Any] = {}
    for name, entry in own.items():
        if type(entry).__name__ == "GluonJITFunction":
            names[name] = FunctionType(entry.fn.__code__, names, name)
        elif type(entry).__name__ == "constexpr":
            names[name] = entry.value
        else:
            names[name] = entry
    layouts = {name: getattr(gluon_language, name) for name in LAYOUTS}
    hopper = {
        "gl": SimpleNamespace(
            **OPERATIONS, **layouts,
            program_id=lambda axis: Value(number), num_programs=lambda axis: Value(count),
            allocate_shared_memory=program.allocate, warp_specialize=program.specialise,
        ),
        "mbarrier": SimpleNamespace(
            MBarrierLayout=lambda: None, init=lambda barrier, count: barrier.init(count),
            expect=program.expect, arrive=program.arrive, wait=program.wait,
        ),
        "async_copy": SimpleNamespace(
            commit_group=program.commit_group, wait_group=program.wait_group,
        ),
        "load_tile": program.copy_tile,
        "load_rows": program.copy_rows,
        "fence_async_shared": program.fence,
        "meet": lambda: None,
        "warpgroup_mma": program.multiply,
        "warpgroup_mma_wait": program.wait_products,
    }  # fmt: skip
    missing = [name for name in hopper if name not in names]
    if missing:
        raise FaultError(f"the kernel does not use {missing}: what should take their place?")
    names.update(hopper)  # in place: it is where the functions look their names up
    return names
