"""What a search reads: synthetic key-value retrieval at any length, or the user's texts."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparsefill.errors import InputError

CHARACTERS = 16  # per token, mostly more than enough: do not tokenize a library for one page


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """Tokens to read, and where they come from.

    Args:
        name: of the text.
        sha256: of the text, or of the synthetic prompt's tokens.
        answer: what a good reader would say next, if that is known.
    """

    name: str
    ids: Int[Tensor, "1 n"]
    sha256: str
    answer: str | None = None

    @property
    def tokens(self) -> int:
        """Length."""
        return self.ids.shape[1]

    def fingerprint(self) -> dict[str, Any]:
        """Tell prompts apart, and the tokenizers that made them."""
        ids = hashlib.sha256(self.ids.cpu().numpy().tobytes()).hexdigest()
        return {**self.provenance(), "ids": ids}

    def provenance(self) -> dict[str, Any]:
        """Describe the prompt in a profile or report."""
        return {"name": self.name, "tokens": self.tokens, "sha256": self.sha256}


def synthetic_prompt(tokenizer: Any, tokens: int, *, seed: int = 0) -> Prompt:
    """Make a key-value retrieval prompt of exactly so many tokens.

    The task that Jiang et al. 2024 calibrate on (`kv_retrieval` of InfiniteBench): a JSON
    object of random UUID pairs, then the question for the value of one of them. Pairs are
    tokenized one by one and added while there is room; what room is left takes a cut pair.

    Raises:
        InputError: there is no room for a single pair.
    """
    draw = random.Random(seed)
    head = _ids(tokenizer, "Find the value of one key in this JSON object.\n\n{", special=True)
    pairs, body = [], []
    question = _question(tokenizer, _uuid(draw))
    while True:
        pair = (_uuid(draw), _uuid(draw))
        text = ("," if pairs else "") + f'\n "{pair[0]}": "{pair[1]}"'
        ids = _ids(tokenizer, text)
        room = tokens - len(head) - len(body) - len(question)
        if len(ids) > room:
            break
        pairs.append(pair)
        body += ids
    if not pairs:
        least = len(head) + len(ids) + len(question)
        raise InputError(f"a synthetic prompt needs about {least} tokens or more, got {tokens}")
    order = list(range(len(pairs)))
    draw.shuffle(order)
    for place in order:
        key, value = pairs[place]
        question = _question(tokenizer, key)
        room = tokens - len(head) - len(body) - len(question)
        if 0 <= room <= 4 * len(ids):  # another key may take a few tokens more or fewer
            break
    else:
        raise InputError(f"no key leaves room for its question in {tokens} tokens; pass more")
    filler = (ids * 4)[:room]
    every = [*head, *body, *filler, *question]
    digest = hashlib.sha256(json.dumps(every).encode()).hexdigest()
    return Prompt(
        name=f"synthetic key-value retrieval, seed {seed}",
        ids=torch.tensor([every]),
        sha256=digest,
        answer=value,
    )


def _question(tokenizer: Any, key: str) -> list[int]:
    return _ids(tokenizer, f'\n}}\n\nKey: "{key}"\nThe value of this key is: "')


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=special).input_ids)
    return ids[:-1] if special and _ends(tokenizer, ids) else ids


def _ends(tokenizer: Any, ids: list[int]) -> bool:
    """Tell whether a tokenizer has added the end of a text, which is not the text's own."""
    return bool(ids) and ids[-1] == getattr(tokenizer, "eos_token_id", None)


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def text_prompt(tokenizer: Any, text: str, tokens: int, *, name: str) -> Prompt:
    """Cut a text to its first tokens.

    Raises:
        InputError: the text has fewer.
    """
    ids = first_tokens(tokenizer, text, tokens)
    if ids.shape[1] < tokens:
        raise InputError(
            f"{name} has only {ids.shape[1]} of the {tokens} tokens asked for;"
            " pass fewer --tokens or a longer text"
        )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Prompt(name=name, ids=ids, sha256=digest)


def first_tokens(tokenizer: Any, text: str, tokens: int) -> Int[Tensor, "1 n"]:
    """Return the first tokens of a text, as many as there are."""
    characters = tokens * CHARACTERS
    ids = tokenizer(text[:characters], return_tensors="pt").input_ids
    while ids.shape[1] <= tokens and characters < len(text):
        characters *= 4
        ids = tokenizer(text[:characters], return_tensors="pt").input_ids
    if _ends(tokenizer, ids[0].tolist()):
        ids = ids[:, :-1]
    return ids[:, :tokens]
