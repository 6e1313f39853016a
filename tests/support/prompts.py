"""A tokenizer that takes no time to load, and samples made with it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsefill.evals.haystack import Haystack, load_haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.sample import Sample
from sparsefill.evals.task import Making, Task

CHAT = (
    "{% for message in messages %}<{{ message.role }}>\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


@cache
def prompter(template: str = "base") -> Prompter:
    """Return a prompter of a tokenizer that cuts words into fives and numbers into digits."""
    cut = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    cut.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\W\d]{1,5}|\d|\s|[^\w\s]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=cut, unk_token="?")
    tokenizer.chat_template = CHAT
    return Prompter(tokenizer=tokenizer, template=template)


@cache
def novels() -> Haystack:
    return load_haystack()


def make(
    task: Task,
    length: int = 4096,
    index: int = 0,
    *,
    seed: int = 42,
    template: str = "base",
    data: Path | None = None,
    one_layout: bool = False,
) -> Sample:
    """Make a sample."""
    return task.make(
        Making(
            task=task.name,
            prompter=prompter(template),
            length=length,
            index=index,
            seed=seed,
            haystack=novels(),
            data=data,
            one_layout=one_layout,
        )
    )
