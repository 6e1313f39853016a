"""Tokenizers small enough to count by hand, with what a prompter asks of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

BEGIN, END = 256, 257  # no bytes
MARKERS = {BEGIN: b"<s>", END: b"</s>"}


class ByteTokenizer:
    """One token a byte, and one that begins every text."""

    chat_template = "<s><user>...</user><assistant>"
    eos_token_id: int | None = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BEGIN] * add_special_tokens + list(text.encode())

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_options: Any
    ) -> str:
        markers = dict.fromkeys(MARKERS, b"") if skip_special_tokens else MARKERS
        said = b"".join(markers[token] if token in markers else bytes([token]) for token in ids)
        return said.decode(errors="replace")

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        turns = "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages)
        return f"<s>{turns}<assistant>"


class EndingTokenizer(ByteTokenizer):
    """One token a byte, and one that ends every text, which begins with another one."""

    eos_token_id = END

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = super().encode(text, add_special_tokens=add_special_tokens)
        return ids + [END] * add_special_tokens


class PieceTokenizer(ByteTokenizer):
    """One token for each match of a pattern, so that neighbours may merge."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)
        self._ids = {"<s>": 0}
        self._pieces = ["<s>"]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [0] * add_special_tokens
        for piece in self._pattern.findall(text):
            if piece not in self._ids:
                self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
            ids.append(self._ids[piece])
        return ids

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_options: Any
    ) -> str:
        return "".join(self._pieces[i] for i in ids if i or not skip_special_tokens)
