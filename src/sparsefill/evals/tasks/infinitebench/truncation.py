"""A prompt that is too long loses its middle, so that its instruction and question stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsefill.errors import InputError
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample

BROKEN = "\ufffd"  # what a decoder writes for part of a character


def keep_ends(ids: Sequence[int], half: int) -> list[int]:
    """Keep the first and the last `half` tokens.

    Example:
        >>> keep_ends([1, 2, 3, 4, 5, 6, 7], 2)
        [1, 2, 6, 7]
    """
    return [*ids[:half], *ids[len(ids) - half :]]


def cut_middle(sample: Sample, prompter: Prompter) -> Sample:
    """Shorten a sample's prompt until prompt and answer fit its length.

    The first and the last ⌊(length - answer) / 2⌋ tokens stay, as in the benchmark. What is cut is
    text, though, and tokens next to the cut may merge, or stand for part of a character, which is
    left out; where they make the prompt longer, a token less is kept on either side. With a chat
    template only what the user says is cut.

    Raises:
        InputError: the template or the lead-in of the answer alone is too long.
    """
    room = sample.length - sample.new_tokens
    if prompter.count(sample) <= room:
        return sample
    plain = prompter.template == "base"
    text = prompter.text(sample) if plain else sample.prompt
    ids = prompter.encode(text, whole=plain)
    around = 0 if plain else prompter.count(replace(sample, prompt=""))
    half = min((room - around) // 2, (len(ids) - 1) // 2)
    while half > 0:
        joined = _text(prompter, ids[:half]).rstrip(BROKEN)
        joined += _text(prompter, ids[len(ids) - half :]).lstrip(BROKEN)
        if plain and not joined.endswith(sample.prefix):
            break
        prompt = joined.removesuffix(sample.prefix) if plain else joined
        recipe = sample.recipe | {"kept_tokens": 2 * half, "of_tokens": len(ids)}
        cut = replace(sample, prompt=prompt, recipe=recipe)
        over = prompter.count(cut) - room
        if over <= 0:
            return cut
        half -= (over + 1) // 2
    raise InputError(
        f"{sample.length} tokens, {sample.new_tokens} of them the answer's, are too few for"
        f" {sample.task}; pass a larger length"
    )


def _text(prompter: Prompter, ids: list[int]) -> str:
    """Turn tokens into the very text that they came from: no space removed before a full stop."""
    return prompter.tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
