"""`sparsefill profile`: show, check, import and export profiles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sparsefill.architecture import Architecture
from sparsefill.atomic import write_atomically
from sparsefill.errors import InputError
from sparsefill.heatmap import describe, summarise
from sparsefill.minference import from_minference, shape_of, to_minference
from sparsefill.profile import Profile
from sparsefill.strict_json import read_text


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a config of the original does not say of its model: a model, or the facts."""

    model: str | None
    kv_heads: int | None
    head_dim: int | None
    rope_base: float | None


def show_profile(console: Console, name: str) -> None:
    """Print what a profile is for, where it comes from and which patterns it uses."""
    profile = Profile.load(name)
    shape = profile.architecture
    base = "unknown" if shape.rope_base is None else f"{shape.rope_base:.12g}"
    console.print(describe(profile, Path(name).name))
    console.print(f"KV heads {shape.kv_heads}, head dimension {shape.head_dim}, rope base {base}")
    for label in summarise(profile).values():
        console.print(f"  {label}")
    if profile.scores is not None:
        scores = [score for row in profile.scores for score in row]
        mean = sum(scores) / len(scores)
        console.print(f"scores: {min(scores):.4g} to {max(scores):.4g}, mean {mean:.4g}")
    for key, value in profile.provenance.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        console.print(f"{key}: {text}", soft_wrap=True)


def check_profile(console: Console, name: str, *, model: str | None) -> None:
    """Say that a profile is valid and fits a model, or raise."""
    profile = Profile.load(name)
    if model is not None:
        profile.require(_architecture_of(model))
    console.print(f"{name} is valid" + ("" if model is None else f" and fits {model}"))


def import_profile(console: Console, original: Path, *, shape: Shape, out: Path) -> None:
    """Turn a config of the original into a profile file."""
    text = read_text(original, what="MInference config")
    source = str(original)
    if shape.model is not None:
        if (shape.kv_heads, shape.head_dim, shape.rope_base) != (None, None, None):
            raise InputError(
                "--model says what --kv-heads, --head-dim and --rope-base would; pass only one"
            )
        architecture = _architecture_of(shape.model)
    elif shape.kv_heads is None or shape.head_dim is None:
        raise InputError(
            "a config of the original does not say what model it is for; pass --model, or"
            " --kv-heads and --head-dim (and --rope-base, if known)"
        )
    else:
        layers, heads = shape_of(text, source=source)
        architecture = Architecture(
            layers=layers,
            heads=heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            rope_base=shape.rope_base,
        )
    profile = from_minference(text, architecture, source=source)
    profile.save(out)
    console.print(describe(profile, original.name))
    console.print(f"wrote {out}")


def export_profile(console: Console, name: str, *, out: Path) -> None:
    """Write a profile as a config of the original."""
    write_atomically(out, to_minference(Profile.load(name)))
    console.print(f"wrote {out}")


def _architecture_of(model: str) -> Architecture:
    from sparsefill.integrations.transformers import architecture_of
    from sparsefill.integrations.transformers.loading import load_config

    return architecture_of(load_config(model))
