"""A tokenizer whose tokens are bytes, as those of models are stored."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>")
MERGED = "qz"  # a vocabulary without any merge cannot be stored as GGUF
RULE = "=" * 64  # a single token, as many vocabularies have: not every token is short


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are bytes, and `RULE`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *letters, MERGED))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(MERGED[0], MERGED[1])]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=SPECIAL[0], bos_token=SPECIAL[1]
    )
    tokenizer.add_tokens([RULE])
    return tokenizer
