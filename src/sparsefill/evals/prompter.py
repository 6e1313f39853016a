"""A sample as the tokens that a model reads: by its chat template, or plainly."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from sparsefill.errors import InputError
from sparsefill.evals.sample import Sample

TEMPLATES = ("base", "chat")


@dataclass(frozen=True, kw_only=True)
class Prompter:
    """Renders samples for one tokenizer.

    Args:
        tokenizer: of transformers, or with its `encode`, `decode` and `apply_chat_template`.
        template: `base`, prompt and answer prefix as they are; or `chat`, the tokenizer's own
            template, with the answer prefix where the model's answer begins.

    Raises:
        InputError: an unknown template, or a tokenizer that has none.
    """

    tokenizer: Any
    template: str = "base"

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise InputError(
                f"template must be one of {', '.join(TEMPLATES)}, got {self.template!r}"
            )
        if self.template == "chat" and not getattr(self.tokenizer, "chat_template", None):
            raise InputError("the model's tokenizer has no chat template; pass --template base")

    def text(self, sample: Sample) -> str:
        """Render a sample, up to where the model's answer goes on."""
        if self.template == "base":
            turns = [f"{user}{assistant}\n" for user, assistant in sample.turns]
            return "".join(turns) + sample.prompt + sample.prefix
        messages: list[dict[str, str]] = []
        for user, assistant in sample.turns:
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": assistant})
        messages.append({"role": "user", "content": sample.prompt})
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return rendered + sample.prefix

    def ids(self, sample: Sample) -> list[int]:
        """Turn a sample into the tokens that a model reads."""
        return self.encode(self.text(sample), whole=True)

    def count(self, sample: Sample) -> int:
        """Count the tokens that a model reads."""
        return len(self.ids(sample))

    def encode(self, text: str, *, whole: bool = False) -> list[int]:
        """Turn a text into tokens.

        Args:
            whole: it is all that the model reads, so that it begins as the tokenizer has texts
                begin; a chat template begins so itself.
        """
        special = whole and self.template == "base"
        ids = list(self.tokenizer.encode(text, add_special_tokens=special))
        end = getattr(self.tokenizer, "eos_token_id", None)
        if special and ids and ids[-1] == end and not text.endswith(self.tokenizer.decode([end])):
            return ids[:-1]  # the tokenizer ended the text, which goes on
        return ids

    @cached_property
    def encode_once(self) -> Callable[[tuple[str, ...]], Sequence[Sequence[int]]]:
        """Turn texts that every sample needs into tokens, remembered until others come."""

        def encode(texts: tuple[str, ...]) -> Sequence[Sequence[int]]:
            return [array("i", self.encode(text)) for text in texts]  # 4 bytes a token

        # here, not beside the function: tokenizers need not be hashable
        return lru_cache(maxsize=1)(encode)

    def decode(self, ids: list[int]) -> str:
        """Turn tokens into text, markers of the template left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)
