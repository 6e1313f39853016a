"""Tokenizers small enough to count by hand, with what a prompter asks of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

BEGIN = 0


class ByteTokenizer:
    """One token a byte, and one that begins every text."""

    chat_template = "<user>...</user><assistant>"
    eos_token_id = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BEGIN] * add_special_tokens + [byte + 1 for byte in text.encode()]

    def decode(self, ids: Sequence[int], **_options: Any) -> str:
        return bytes(token - 1 for token in ids if token != BEGIN).decode(errors="replace")

    def apply_chat_template(self, messages: list[dict[str, str]], **_options: Any) -> str:
        turns = "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages)
        return f"{turns}<assistant>"


class PieceTokenizer(ByteTokenizer):
    """One token for each match of a pattern, so that neighbours may merge."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._pieces = pattern, [""]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [BEGIN] * add_special_tokens
        for piece in re.findall(self._pattern, text):
            if piece not in self._pieces:
                self._pieces.append(piece)
            ids.append(self._pieces.index(piece))
        return ids

    def decode(self, ids: Sequence[int], **_options: Any) -> str:
        return "".join(self._pieces[token] for token in ids)
