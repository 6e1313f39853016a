"""Rows of a run: what each method made of each sample, and how long that took.

Rows are read as strictly as they are written: a number that no measurement gives is refused
where it stands, before anything is computed from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sparsefill.errors import InputError
from sparsefill.evals.fields import MOST, Fields
from sparsefill.strict_json import parse_json

SAMPLES, TIMES = "samples.jsonl", "times.jsonl"
SHARE = (0.0, 1.001)  # kept of what there is; attention in bfloat16 rounds above 1
SECONDS = (0.0, 1e9)
TTFT = (1e-9, 1e9)  # nothing is read in no time
BOUNDS = {"nll": (0.0, 690.0), "nll_tokens": (1.0, float(MOST))}  # of values: exp(690) is finite
DEPTH = "depth_percent"  # of a recipe: where the needle lies
HEAD = re.compile(r"([^/]+)/([0-9]{1,4})/([0-9]{1,4})")
AnyLine = TypeVar("AnyLine", bound="Line")


@dataclass(frozen=True, order=True)
class Key:
    """Which sample, read by which method; sorts by task, then length."""

    task: str
    length: int
    index: int
    method: str

    def __str__(self) -> str:
        """Name it as errors do."""
        return f"sample {self.index} of {self.task} at {self.length} tokens by {self.method!r}"


# how each field of a line is read
READ: dict[str, Callable[[Fields, str], Any]] = {
    **dict.fromkeys(("method", "task", "answer"), Fields.text),
    "length": partial(Fields.whole, least=1),
    **dict.fromkeys(("index", "tokens", "new_tokens"), Fields.whole),
    "score": partial(Fields.number, bounds=(0.0, 1.0)),
    "references": lambda found, name: tuple(found.texts(name)),
    "recipe": lambda found, name: _recipe(found, name),
    **dict.fromkeys(("density", "recall"), partial(Fields.number, bounds=SHARE)),
    "values": partial(Fields.numbers, bounds=BOUNDS),
    "environment": Fields.whole,
    "ttft_s": partial(Fields.number, bounds=TTFT),
    **dict.fromkeys(
        ("attention_s", "estimate_s", "decode_s"), partial(Fields.number, bounds=SECONDS)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a file of rows: something about one sample, read by one method.

    Args:
        length: tokens aimed for.
    """

    method: str
    task: str
    length: int
    index: int

    @property
    def key(self) -> Key:
        """Return what the line is told by."""
        return Key(self.task, self.length, self.index, self.method)

    def line(self) -> str:
        """Write it as a line of its file."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"

    def checked(self: AnyLine) -> AnyLine:
        """Return it as it will be read back.

        Raises:
            InputError: it would not be.
        """
        source = str(self.key)
        try:
            text = self.line()
        except ValueError as error:
            raise InputError(
                f"{source}: what was measured must be finite numbers: {error}"
            ) from error
        return type(self).parse(parse_json(text, source=source), source=source)

    @classmethod
    def parse(cls: type[AnyLine], data: Any, *, source: str) -> AnyLine:
        """Check one line's data.

        Raises:
            InputError: something is missing, unknown or of the wrong kind.
        """
        found = Fields(data, source=source)
        line = cls(**{field.name: READ[field.name](found, field.name) for field in fields(cls)})
        found.end()
        return line


@dataclass(frozen=True, kw_only=True)
class Row(Line):
    """What one method made of one sample: a line of `samples.jsonl`.

    Args:
        tokens: of the prompt.
        new_tokens: the most tokens of an answer.
        score: from 0 to 1; None where nothing is scored.
        references: right answers.
        recipe: what rebuilds the sample; `depth_percent` is where a needle lies.
        density: cells kept, of causal cells.
        recall: attention mass kept.
        values: whatever else was measured. `nll` is in nats a token, over `nll_tokens` tokens if
            that is there; `NAME/LAYER/HEAD` is one cell of a map of heads.
    """

    tokens: int
    new_tokens: int
    score: float | None
    answer: str
    references: tuple[str, ...] = ()
    recipe: dict[str, Any]
    density: float | None = None
    recall: float | None = None
    values: dict[str, float]

    @property
    def sample(self) -> dict[str, Any]:
        """Return what says which sample it is, the same whatever method reads it.

        References of what is not scored are no part of it: fidelity's are what full attention
        said on that machine.
        """
        scored = {} if self.score is None else {"references": self.references}
        return {
            **scored,
            "recipe": self.recipe,
            "tokens": self.tokens,
            "new_tokens": self.new_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class Times(Line):
    """How long one method took for one sample, in seconds: a line of `times.jsonl`.

    None stands where it was not measured.

    Args:
        environment: number of the manifest's environment in which it was measured.
    """

    environment: int = 0
    ttft_s: float | None = None
    attention_s: float | None = None
    estimate_s: float | None = None
    decode_s: float | None = None


def _recipe(found: Fields, name: str) -> dict[str, Any]:
    """Return a recipe; a depth that it tells is one."""
    recipe = found.mapping(name)
    if DEPTH in recipe:
        Fields({DEPTH: recipe[DEPTH]}, source=f"{found.source}: {name}").number(
            DEPTH, bounds=(0.0, 100.0)
        )
    return recipe


def head_of(name: str) -> tuple[str, int, int] | None:
    """Take a value's name apart, if it is that of one head: `NAME/LAYER/HEAD`.

    Example:
        >>> head_of("recall/3/12"), head_of("nll"), head_of("recall/²/1")
        (('recall', 3, 12), None, None)
    """
    found = HEAD.fullmatch(name)
    return (found[1], int(found[2]), int(found[3])) if found else None


def read_lines(path: Path, kind: type[AnyLine]) -> Iterator[tuple[str, AnyLine]]:
    """Yield each line's place and what it holds; nothing if there is no file.

    A last line that was torn when the run was killed is left out.

    Raises:
        InputError: another line is broken.
    """
    if not path.is_file():
        return
    text = whole_lines(path.read_bytes())
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        source = f"{path}, line {number}"
        try:
            decoded = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source} must be UTF-8 text, got {error}") from error
        yield source, kind.parse(parse_json(decoded, source=source), source=source)


def whole_lines(content: bytes) -> bytes:
    r"""Return content up to the last line that was written whole.

    Whoever goes on with a file cuts it there first.

    Example:
        >>> whole_lines(b'{"index": 0}\n{"ind')
        b'{"index": 0}\n'
    """
    return content[: content.rfind(b"\n") + 1]
