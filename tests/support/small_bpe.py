"""A small tokenizer that merges letters and marks the start of a text, as those of models do."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sparsefill.data import novel

CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]\n{{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@cache
def small_bpe() -> PreTrainedTokenizerFast:
    """Train on the start of a novel: 600 tokens beyond the letters."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + 602,
        special_tokens=["<unk>", "<s>"],
        initial_alphabet=letters,
        show_progress=False,
    )
    core.train_from_iterator([novel()[:60_000]], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT
    return tokenizer
