"""A reader without a model, and a tokenizer without a vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sparsefill.evals.haystack import Haystack
from sparsefill.evals.prompter import Prompter
from sparsefill.evals.task import Making
from sparsefill.reader import Answered, Compared, Followed, Method, Prefill

TOOK = Prefill(ttft_s=0.5, attention_s=0.25, estimate_s=0.125, density=0.5)
HAYSTACK = Haystack("words", "It was a long way to the town. They walked. " * 400)


class Bytes:
    """A tokenizer of one token a byte, whose texts begin with token 256 and end with 257."""

    eos_token_id = 257
    chat_template = "yes"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        own = list(text.encode())
        return [256, *own, 257] if add_special_tokens else own

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        names = {256: "<s>", 257: "</s>"}
        parts = ["" if skip_special_tokens and i in names else names.get(i, chr(i)) for i in ids]
        return "".join(parts)

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        told = "".join(f"<{m['role']}>{m['content']}</s>" for m in messages)
        return f"<s>{told}<assistant>"


class Scripted:
    """Says what it is told to, by method, and counts what it reads."""

    def __init__(self, says: dict[str, str]) -> None:
        self.says = says
        self.read: list[tuple[str, int]] = []

    def answer(
        self,
        method: Method,
        ids: Sequence[int],
        *,
        new_tokens: int,
        settled: Callable[[list[int]], bool] | None = None,
    ) -> Answered:
        self.read.append((method.name, len(ids)))
        said: list[int] = []
        for token in self.says[method.name].encode()[:new_tokens]:
            said.append(token)
            if settled is not None and settled(said):
                break
        return Answered(said, TOOK, 0.75)

    def follow(
        self, method: Method, ids: Sequence[int], continuations: Sequence[tuple[list[int], int]]
    ) -> tuple[list[Followed], Prefill]:
        self.read.append((method.name, len(ids)))
        return [
            Followed(torch.full((judged,), 0.5, dtype=torch.float64), torch.ones(judged) > 0)
            for _, judged in continuations
        ], TOOK

    def losses(self, method: Method, ids: Sequence[int]):
        self.read.append((method.name, len(ids)))
        return torch.full((len(ids) - 1,), 2.0, dtype=torch.float64), TOOK

    def compare(self, method: Method, ids: Sequence[int], *, positions: int, new_tokens: int):
        self.read.append((method.name, len(ids)))
        logits = torch.zeros(positions, 258)
        return Compared(logits, logits, [1] * new_tokens, [1] * new_tokens, TOOK)


def making(task: str = "a/task", length: int = 600, index: int = 0, **options) -> Making:
    settings = {"seed": 42, "haystack": HAYSTACK, "prompter": Prompter(tokenizer=Bytes())}
    return Making(task=task, length=length, index=index, **{**settings, **options})
