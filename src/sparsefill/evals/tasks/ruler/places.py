"""Where needles go: at sentence boundaries of prose, or between lines."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsefill.evals.haystack import Haystack

DEPTHS = tuple(round(100 * step / 39) for step in range(40))  # percent
SENTENCE_END = re.compile(
    r"""(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)  # no end after a title
    [.!?]["'\u201d\u2019)\]_]*\ (?=["'\u201c\u2018(\[_]*[A-Z])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Placed:
    """A text with needles in it, and what says where they are."""

    text: str
    recipe: dict[str, Any]


def hide_in_prose(
    haystack: Haystack, words: int, needles: Sequence[str], draw: random.Random
) -> Placed:
    """Put needles at sentence boundaries of so many words, at random depths, in order.

    Depths are drawn from a grid of 40 without replacement: percent of the sentences before.
    """
    rounds, rest = divmod(words, len(haystack.words))
    text = " ".join([*list(haystack.words) * rounds, *haystack.words[:rest]])
    ends = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    sentences = len(ends) - 1
    depths = sorted(draw.sample(DEPTHS, len(needles)))
    places = [sentences * depth // 100 for depth in depths]
    pieces, begin = [], 0
    for place, sentence in zip(places, needles, strict=True):
        pieces += [text[begin : ends[place]].strip(), sentence]
        begin = ends[place]
    pieces.append(text[begin:].strip())
    recipe = {
        "text": haystack.provenance(),
        "sentence_splitter": "regex",
        "sentences": sentences,
        "depths": depths,
        "places": places,
        "text_rounds": rounds + bool(rest),
    }
    return Placed(" ".join(filter(None, pieces)), recipe)


def hide_in_lines(lines: Sequence[str], needles: Sequence[str], draw: random.Random) -> Placed:
    """Put each needle before a line, drawn without replacement; they stay in order."""
    places = sorted(draw.sample(range(len(lines)), len(needles)))
    merged, begin = list[str](), 0
    for place, sentence in zip(places, needles, strict=True):
        merged += [*lines[begin:place], sentence]
        begin = place
    merged += lines[begin:]
    depths = [round(100 * place / len(lines), 1) for place in places]
    return Placed("\n".join(merged), {"places": places, "depths": depths})
