"""Write a tiny random Llama and its tokenizer into a folder.

python -m tests.vllm.save_model FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.byte_bpe import tiny_tokenizer
from tests.support.models import tiny_model


def main(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(
        "llama-3",
        vocab_size=len(tokenizer),
        hidden_size=128,
        head_dim=64,  # two ranks have two query heads each, and one KV head
        max_position_embeddings=16384,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
