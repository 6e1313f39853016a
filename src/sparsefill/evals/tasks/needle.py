"""Needle In A Haystack: one odd sentence at a depth of a long text, and a question for it.

Two variants. `needle/minference` is what MInference ran (microsoft/MInference, MIT): a magic
number, found or not. `needle/classic` is the first one (gkamradt/LLMTest_NeedleInAHaystack,
MIT): a sentence about San Francisco, whose answers a GPT model judged. Both wordings are theirs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sparsefill.errors import InputError
from sparsefill.evals.filler import Filler, back_to_sentence, period_of, read_filler, rotation
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making, Score, Task
from sparsefill.evals.tasks.cities import CITIES

TRIES = 4  # to meet a length to the token: words that meet at a cut may merge


@dataclass(frozen=True, kw_only=True)
class Needle:
    """What is hidden, and what is asked for it."""

    text: str
    question: str
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One wording of the test.

    Args:
        name: of the task.
        prompt: with `{context}` and `{question}`.
        prefix: how the answer begins.
        draw: makes a needle.
        score: compares an answer with the needle's references.
        judged_by: what the score is, for reports.
        depths: depths of its grid.
        buffer: tokens of the length that text and needle leave free, where wording and answer
            do not need as many: 200 in the original, so that short prompts fall short of it.
        new_tokens: the most tokens of an answer.
        settled: the score once nothing that follows can lower it, as of `Task`.
    """

    name: str
    prompt: str
    prefix: str = ""
    draw: Callable[[random.Random], Needle]
    score: Score
    judged_by: str
    depths: int
    buffer: int = 0
    new_tokens: int
    settled: Score


def place(index: int, depths: int) -> tuple[int, int]:
    """Return depth in percent, and round, of a sample: all depths of a round, then the next.

    Example:
        >>> [place(index, depths=3) for index in range(4)]
        [(0, 0), (50, 0), (100, 0), (0, 1)]
    """
    turn, step = divmod(index, depths)
    return int(np.round(np.linspace(0, 100, depths))[step]), turn


def make_needle(variant: Variant, making: Making) -> Sample:
    """Make a sample with a token count that is met exactly, or missed by as few as cuts allow.

    Text and needle take `length - buffer` tokens, and the wording comes on top; less only
    where wording and answer would not fit. Unlike in the programs these variants come from,
    the prompt is counted as a model will read it, nothing is encoded with the markers of a
    text's start, and randomness is seeded.

    Raises:
        InputError: the length has no room for the wording and a sentence of text.
    """
    needle = variant.draw(making.draw("needle"))
    bare, hidden = (_sample(variant, making, needle, text) for text in ("", needle.text))
    count = making.prompter.count
    room = min(count(bare) - variant.buffer, -variant.new_tokens) + making.length
    tokens = room - count(hidden)
    _, turn = place(making.index, variant.depths)
    offset = rotation(making.haystack, turn, making.seed)
    spare = max(tokens, 0) // 64 + 2 * TRIES  # 64: words may take fewer tokens when read again
    filler = read_filler(making.prompter, making.haystack, offset, max(tokens, 0) + spare)
    best, tried = None, set[int]()
    while 0 < tokens <= len(filler.ids) and (len(tried) < TRIES or best is None):
        tried.add(tokens)
        sample = _hide(variant, making, needle, replace(filler, ids=filler.ids[:tokens]))
        found = count(sample)
        if found <= room and (best is None or found > best.recipe["tokens"]):
            best = replace(sample, recipe=sample.recipe | {"tokens": found})
        if found == room:
            break
        tokens += room - found
        while tokens in tried:
            tokens += 1  # a cut inside another word meets the wording in other tokens
    if best is None:
        raise InputError(
            f"{variant.name} has no room for a text in {making.length} tokens; pass a larger length"
        )
    return best


def _hide(variant: Variant, making: Making, needle: Needle, filler: Filler) -> Sample:
    """Put a needle into filler, at the end of a sentence; at a depth of 100 %, at the end."""
    depth, turn = place(making.index, variant.depths)
    at = len(filler.ids)
    if depth < 100:
        at = back_to_sentence(filler.ids, at * depth // 100, period_of(making.prompter))
    before, after = (_decode(making, part) for part in (filler.ids[:at], filler.ids[at:]))
    recipe = {
        "depth_percent": depth,
        "round": turn,
        "offset": filler.offset,
        "passes": filler.passes,
        "filler_tokens": len(filler.ids),
        "needle_after": at,
        "judged_by": variant.judged_by,
    }
    return _sample(variant, making, needle, before + needle.text + after, recipe)


def _decode(making: Making, ids: Sequence[int]) -> str:
    """Turn filler into text; a character that was cut in two is left out."""
    return making.prompter.decode(list(ids)).strip("\ufffd")


def _sample(
    variant: Variant,
    making: Making,
    needle: Needle,
    context: str,
    recipe: dict[str, Any] | None = None,
) -> Sample:
    """Word a sample."""
    return Sample(
        task=making.task,
        length=making.length,
        index=making.index,
        prompt=variant.prompt.format(context=context, question=needle.question),
        prefix=variant.prefix,
        references=needle.references,
        new_tokens=variant.new_tokens,
        recipe=recipe or {},
    )


def digits_found(said: str, references: Sequence[str]) -> float:
    """Say whether the magic number stands anywhere in an answer.

    Example:
        >>> digits_found("It is 1234567.", ["1234567"]), digits_found("123456", ["1234567"])
        (1.0, 0.0)
    """
    return float(references[0] in said)


def stand_in_for_judge(said: str, references: Sequence[str]) -> float:
    """Return the share of the needle's key words in an answer, in place of a GPT judge.

    Not the published score: the judge gave 1, 3, 5, 7 or 10 for how well an answer matches.

    Example:
        >>> stand_in_for_judge("Eat a SANDWICH in the park.", ["sandwich", "Dolores", "park"])
        0.6666666666666666
    """
    words = set(re.findall(r"\w+", said.casefold()))
    return sum(reference.casefold() in words for reference in references) / len(references)


def words_ended(said: str, references: Sequence[str]) -> float:
    """Return what `stand_in_for_judge` gives without the last word, which may go on.

    So may a character whose bytes are not all there: it is decoded as U+FFFD.

    Example:
        >>> words_ended("on a sunny day", ["sunny", "day"])
        0.5
        >>> words_ended("on a sunny day.", ["sunny", "day"])
        1.0
    """
    return stand_in_for_judge(re.sub(r"[\w\ufffd]+$", "", said), references)


def _magic_number(draw: random.Random) -> Needle:
    city, number = draw.choice(CITIES), str(draw.randint(10**6, 10**7 - 1))
    return Needle(
        text=f"\nThe special magic {city} number is: {number}\n",
        question=f"What is the special magic {city} number?",
        references=(number,),
    )


def _san_francisco(draw: random.Random) -> Needle:
    return Needle(
        text="\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park"
        " on a sunny day.\n",
        question="What is the best thing to do in San Francisco?",
        # verbs are left out: "eating" and "sitting" are as right
        references=("sandwich", "Dolores", "Park", "sunny", "day"),
    )


MINFERENCE = Variant(
    name="needle/minference",
    prompt="Write a high-quality answer for the given question using only the provided search"
    " results (some of which might be irrelevant).\n{context}\n\nQuestion: {question} Don't give"
    " information outside the document or repeat your findings. Keep your response short and"
    " direct.",
    prefix=" Answer: ",
    draw=_magic_number,
    score=digits_found,
    judged_by="digits in the answer",
    depths=10,
    new_tokens=32,
    settled=digits_found,
)
CLASSIC = Variant(  # its first message was the system's; not every template has one
    name="needle/classic",
    prompt="You are a helpful AI bot that answers questions for a user. Keep your response short"
    " and direct\n\n{context}\n\n{question} Don't give information outside the document or repeat"
    " your findings",
    draw=_san_francisco,
    score=stand_in_for_judge,
    judged_by="share of key words, a stand-in for the GPT judge",
    depths=35,
    new_tokens=300,
    settled=words_ended,
)


def needle_task(variant: Variant) -> Task:
    """Make a task of a variant."""
    return Task(
        name=variant.name,
        new_tokens=variant.new_tokens,
        make=partial(make_needle, variant),
        score=variant.score,
        settled=variant.settled,
    )


TASKS = (needle_task(MINFERENCE), needle_task(CLASSIC))
