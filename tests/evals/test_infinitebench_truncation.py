"""Prompts that are too long lose exactly their middle."""

from __future__ import annotations

import pytest

from sparsefill.errors import InputError
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.tasks.infinitebench.truncation import cut_middle
from tests.support.tokenizers import ByteTokenizer, PieceTokenizer

BYTES = Prompter(tokenizer=ByteTokenizer())
CHAT = Prompter(tokenizer=ByteTokenizer(), template="chat")
NUMBERED = "".join(f"{number:03}," for number in range(250))  # 1000 characters, none repeated


def sample(prompt: str, *, length: int, prefix: str = "", new_tokens: int = 0) -> Sample:
    return Sample(
        task="infinitebench/x", length=length, index=0, prompt=prompt, prefix=prefix,
        new_tokens=new_tokens,
    )  # fmt: skip


@pytest.mark.parametrize(("length", "answer"), [(400, 40), (401, 40), (400, 41), (999, 0)])
def test_the_first_and_the_last_halves_stay(length: int, answer: int):
    half = (length - answer) // 2
    cut = cut_middle(sample(NUMBERED, length=length, prefix="Answer:", new_tokens=answer), BYTES)
    whole = NUMBERED + "Answer:"
    assert BYTES.text(cut) == whole[: half - 1] + whole[-half:]  # a token begins the text
    assert cut.prefix == "Answer:"
    assert BYTES.count(cut) == 2 * half
    assert cut.recipe == {"kept_tokens": 2 * half, "of_tokens": 1 + len(whole)}


def test_what_fits_stays_as_it_is():
    fits = sample(NUMBERED, length=1001 + 7, new_tokens=7)
    assert cut_middle(fits, BYTES) is fits
    cut = cut_middle(sample(NUMBERED, length=1000 + 7, new_tokens=7), BYTES)
    assert BYTES.text(cut) == NUMBERED[:499] + NUMBERED[500:]


def test_a_template_stays_whole():
    cut = cut_middle(sample(NUMBERED, length=300, prefix="Answer:", new_tokens=10), CHAT)
    around = len("<s><user></user><assistant>Answer:")
    half = (290 - around) // 2
    prompt = NUMBERED[:half] + NUMBERED[-half:]
    assert CHAT.text(cut) == f"<s><user>{prompt}</user><assistant>Answer:"
    assert CHAT.count(cut) in (289, 290)


@pytest.mark.parametrize("length", range(100, 112))
def test_no_part_of_a_character_stays(length: int):
    text = "上海、北京。" * 40
    cut = cut_middle(sample(text, length=length), BYTES)
    head, tail = cut.prompt[: len(cut.prompt) // 2 - 2], cut.prompt[len(cut.prompt) // 2 + 2 :]
    assert text.startswith(head)
    assert text.endswith(tail)
    assert "\ufffd" not in cut.prompt
    assert length - 7 <= BYTES.count(cut) <= length


def test_tokens_that_meet_may_become_more():
    """Here "a" and "abbb" become "aa", "b", "b", "b": a token less is kept on either side."""
    pieces = Prompter(tokenizer=PieceTokenizer("aa|abbb|a|b|-"))
    text = "-" * 50 + "a" + "-" * 100 + "abbb" + "-" * 51
    cut = cut_middle(sample(text, length=104), pieces)
    assert cut.prompt == "-" * 50 + "-" * 51
    assert pieces.count(cut) == 102
    assert cut.recipe["kept_tokens"] == 102


@pytest.mark.parametrize("prompter", [BYTES, CHAT])
def test_a_length_without_room_is_refused(prompter: Prompter):
    with pytest.raises(InputError, match="too few for infinitebench/x; pass a larger length"):
        cut_middle(sample(NUMBERED, length=50, prefix="The name is " * 3), prompter)
