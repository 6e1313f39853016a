"""Every sample by every method, what is there already left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsefill.errors import InputError
from sparsefill.evals.ledger import Ledger
from sparsefill.evals.rows import Key
from sparsefill.evals.task import Making, Measurable, Outcome
from sparsefill.reader import Method, Reader

OnOutcome = Callable[[Key, Outcome | None], None]  # None: it was there already


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Args:
        lengths: tokens of prompt and answer.
        samples: of each task and length.
    """

    tasks: Sequence[Measurable]
    methods: Sequence[Method]
    lengths: Sequence[int]
    samples: int

    def __post_init__(self) -> None:
        within = [task.name for task in self.tasks if not task.decodes]
        dropping = [method.name for method in self.methods if method.keys is not None]
        if within and dropping:
            raise InputError(
                f"{within[0]} judges predictions within the prompt, which {dropping[0]} reads as"
                " without +snapkv; leave out one of the two"
            )

    def rows(self) -> list[Key]:
        """List all rows, in the order in which they are measured.

        The methods of a sample follow each other: a run that is stopped has pairs to compare.
        """
        return [
            Key(task=task.name, length=length, index=index, method=method.name)
            for length in self.lengths
            for index in range(self.samples)
            for task in self.tasks
            for method in self.methods
        ]

    @property
    def work(self) -> int:
        """Tokens to read."""
        return sum(key.length for key in self.rows())


def run(
    plan: Plan,
    reader: Reader,
    making: Callable[[str, int, int], Making],
    ledger: Ledger,
    on_outcome: OnOutcome,
) -> None:
    """Measure what the ledger lacks, each row written as soon as it is known.

    Args:
        making: what samples are made from, by task, length and index.
    """
    methods = {method.name: method for method in plan.methods}
    tasks = {task.name: task for task in plan.tasks}
    prepared: tuple[tuple[str, int, int], Callable[[Reader, Method], Outcome]] | None = None
    for key in plan.rows():
        if key in ledger:
            on_outcome(key, None)
            continue
        what = (key.task, key.length, key.index)
        if prepared is None or prepared[0] != what:
            prepared = what, tasks[key.task].prepare(making(*what))
        outcome = prepared[1](reader, methods[key.method])
        ledger.add(key, outcome)
        on_outcome(key, outcome)
