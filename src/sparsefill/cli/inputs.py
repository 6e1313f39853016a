"""What commands that run a model share: its device, the model itself, and texts to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparsefill.environment import fast_bfloat16
from sparsefill.errors import InputError
from sparsefill.integrations.transformers import architecture_of
from sparsefill.integrations.transformers.loading import Loaded, load_model, position_limit
from sparsefill.kernels import choose_backend
from sparsefill.patterns import Pattern
from sparsefill.profile import Profile, profile_for

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model a command reads with, and by what."""

    model: str | None = None
    backend: Any = "auto"
    device: str = "auto"
    trust_remote_code: bool = False


def resolve_device(name: str) -> str:
    """Resolve the device, and check that torch can put a tensor there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--device must be one that torch can use, got {name!r}: {reason}"
        ) from None
    return name


def check_dtype(name: str) -> None:
    """Refuse a `--dtype` that is none."""
    if name != "auto" and name not in DTYPES:
        raise InputError(f"--dtype must be auto, {', '.join(DTYPES)}, got {name!r}")


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """Resolve the dtype of the weights; `auto` is bfloat16 where the device computes in it."""
    check_dtype(name)
    if name == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return DTYPES[name]


def load_to_read(
    console: Console, options: ModelOptions, *, dtype: torch.dtype, device: str
) -> Loaded:
    """Load a model, once it is known that the backend can serve it.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
        UnsupportedError: the backend cannot serve tensors of this kind.
    """
    # fail now rather than at the first layer
    choose_backend(options.backend, torch.empty(1, 1, 1, 64, dtype=dtype, device=device))
    if dtype == torch.bfloat16 and not fast_bfloat16(device):
        warn(console, "this CPU does not compute in bfloat16: --dtype float32 reads faster")
    with console.status("loading the model"):
        return load_model(
            options.model,
            dtype=dtype,
            device=device,
            trust_remote_code=options.trust_remote_code,
        )


def read_text(path: Path, *, option: str) -> str:
    """Read a text file that an option names.

    Raises:
        InputError: there is none, or no text in it.
    """
    if not path.is_file():
        raise InputError(f"no prompt file at {path}; check {option}")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); convert it") from error
    if not text.strip():
        raise InputError(f"the prompt must not be empty, got {path} without any text")
    return text


def profile_to_read(loaded: Loaded, given: Profile | Pattern | None) -> Profile:
    """Return what a model reads by, as `profile_for`."""
    config: Any = loaded.model.config
    return profile_for(architecture_of(config.get_text_config()), given)


def beyond_positions(loaded: Loaded, tokens: int, so_what: str) -> str | None:
    """Say that a prompt has more tokens than the model was made for; None if it has not."""
    limit = position_limit(loaded.model)
    if limit is None or tokens <= limit:
        return None
    return (
        f"{tokens} tokens exceed the {limit} positions that {loaded.name} was made for: {so_what}"
    )


def warn(console: Console, what: str) -> None:
    """Print a warning."""
    console.print(f"warning: {what}", style="yellow", highlight=False, soft_wrap=True)
