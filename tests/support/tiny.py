"""A tiny model on disk, as safetensors or one GGUF file, and the command line to read with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from sparsefill.cli.app import app
from sparsefill.profile import Architecture
from tests.support.byte_bpe import MERGED, SPECIAL, tiny_tokenizer
from tests.support.models import FAMILIES, tiny_model

TINY = Architecture(layers=2, heads=4, kv_heads=2, head_dim=16)
TOKENS = 300  # of a prompt, unless a test says otherwise
SPARSE = "a-shape:sink=4,window=64"
PROSE = "Vanity was the beginning and the end of Sir Walter Elliot's character. "


def save_tiny_llama(folder: Path, *, positions: int = 4096) -> Path:
    """Write a random Llama of two layers, which reads bytes, into a folder."""
    tokenizer = tiny_tokenizer()
    model = _tiny_llama(tokenizer, positions)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_gguf(path: Path) -> Path:
    """Write the same model as one GGUF file, unquantised."""
    tokenizer = tiny_tokenizer()
    model: Any = _tiny_llama(tokenizer, 4096)
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(FAMILIES["llama-3"][1]["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(MERGED)])
    writer.add_bos_token_id(1)
    writer.add_unk_token_id(0)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        own = next((count for part, count in heads.items() if part in name), None)
        if own is not None:  # llama.cpp rotates neighbouring pairs, transformers the two halves
            tensor = tensor.unflatten(0, (own, 2, -1)).transpose(1, 2).flatten(0, 2)
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None, name
        writer.add_tensor(stored, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tiny_llama(tokenizer: PreTrainedTokenizerFast, positions: int) -> Any:
    return tiny_model("llama-3", vocab_size=len(tokenizer), max_position_embeddings=positions)


def cut(path: Path) -> None:
    """Break a file: keep its first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def run_cli(*arguments: object) -> Any:
    """Run the command line in this process, in a wide terminal."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def prefill(*flags: str, **changed: object) -> Any:
    """Read `prompt.txt` into `out`, but for the options named; None leaves one out."""
    options: dict[str, object] = {
        "prompt_file": "prompt.txt",
        "tokens": TOKENS,
        "min_length": 64,
        "method": SPARSE,
        "dtype": "float32",
        "new_tokens": 4,
        "out": "out",
    }
    options.update(changed)
    given = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
    parts = [part for pair in given if pair[1] is not None for part in pair]
    return run_cli("prefill", *parts, *flags)


def read_report() -> dict[str, Any]:
    """Read the report in `out` as strict JSON, which has no NaN."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(Path("out/report.json").read_text("utf-8"), parse_constant=refuse)


def assert_refused(result: Any, why: str) -> None:
    """Fail unless there is one clear line, no traceback, and nothing in `out`."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert why in lines[0]
    assert not Path("out").exists()
