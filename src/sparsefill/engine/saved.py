"""The folder that an interrupted prefill goes on from: a manifest beside its tensors.

By layers it holds what goes into the next layer (two files in turn, so that the one being
written is never the one to go on from) and the keys and values of the layers done; by chunks
the keys and values of the chunks done. The manifest is written last, all or nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsefill.atomic import write_atomically
from sparsefill.engine.files import TokenFile
from sparsefill.engine.store import Buffer, KVStore
from sparsefill.errors import InputError
from sparsefill.integrations.transformers.identity import weights_sha256
from sparsefill.integrations.transformers.run import Run
from sparsefill.patterns import to_dict
from sparsefill.strict_json import parse_json

MANIFEST = "prefill.json"
LOCK = "lock"  # held by the process that reads into the folder
TOLD = ("kv", "order", "chunk", "backend", "min_length", "dtype", "device", "shape")
NAMES = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype")
SCHEMA = 1
DTYPES = {
    str(t).removeprefix("torch."): t
    for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


class Saved:
    """A folder with what was read of a prompt so far.

    Args:
        folder: where; made if need be.
        resume: go on with what it holds.

    Raises:
        InputError: there is nothing to go on from, or something that would be overwritten.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder, self.resume = folder, resume
        self._path = folder / MANIFEST
        self._lock = _lock(folder)
        self._settings: dict[str, Any] = {}
        self._done = 0
        self._heads: list[dict[str, list[int]]] = []
        self._files: dict[int, TokenFile] = {}
        try:
            if resume:
                self._read()
            else:
                self._require_empty()
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    @property
    def chunk(self) -> int | None:
        """Tokens of a chunk, as the earlier run chose them; None if there was none."""
        return self._settings.get("chunk")

    def _require_empty(self) -> None:
        """Refuse to write over a prefill, or over anything else."""
        if self._path.exists():
            raise InputError(
                f"{self.folder} already holds a prefill; pass resume to go on with it, or save to"
                " another folder"
            )
        foreign = sorted({own.name for own in self.folder.iterdir()} - {LOCK})
        if foreign:
            raise InputError(
                f"a prefill is saved to a folder of its own, got {self.folder} with {foreign[0]};"
                " pass an empty or a new one"
            )

    def _read(self) -> None:
        """Take up a manifest, checking all that is used of it."""
        if not self._path.is_file():
            raise InputError(f"{self.folder} holds no prefill to resume; check the folder")
        try:
            data = parse_json(self._path.read_text("utf-8"), source=MANIFEST)
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}, expected {SCHEMA}")
            self._settings, self._done, self._heads = data["settings"], data["done"], data["heads"]
            if (
                type(self._done) is not int
                or self._done < 0
                or not _counts(self._settings["chunk"])
            ):
                raise ValueError("impossible counts")
            by_layers = self._settings["order"] == "layers"
            layers, chunks = self._settings["architecture"]["layers"], self._settings["bounds"]
            expected = self._done if by_layers else layers * bool(self._done)
            if len(self._heads) != expected or self._done >= (layers if by_layers else len(chunks)):
                raise ValueError(f"{self._done} done, heads of {len(self._heads)} layers")
            for own in self._heads:
                if not (len(own["k"]) == len(own["v"]) == 3 and _counts(*own["k"], *own["v"])):
                    raise ValueError("impossible heads")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self._path} is damaged ({error}); prefill again into another folder"
            ) from error

    def begin(self, settings: dict[str, Any]) -> None:
        """Start a prefill of these settings, or go on with one.

        Raises:
            InputError: the folder holds a prefill of other settings.
        """
        settings = json.loads(json.dumps(settings))  # as they come back
        if self.resume:
            other = [name for name, own in settings.items() if self._settings.get(name) != own]
            if other:
                told = [
                    f"{name}: {self._settings.get(name)} there, {settings[name]} now"
                    for name in other
                    if name in TOLD
                ]
                raise InputError(
                    f"{self.folder} holds another prefill: {', '.join(other)} differ"
                    f" ({'; '.join(told) or 'only their hashes are kept'}); resume with the same"
                    " model, prompt and options, or save to another folder"
                )
        self._settings = settings
        if not self.resume:
            self._write()

    def note(self, done: int, store: KVStore) -> None:
        """Say that so many layers or chunks are done, once all of it is on the disk."""
        for file in self._files.values():
            file.sync()
        store.sync()
        self._done, self._heads = done, store.heads
        self._write()

    def _write(self) -> None:
        data = {
            "schema": SCHEMA,
            "settings": self._settings,
            "done": self._done,
            "heads": self._heads,
        }
        write_atomically(self._path, json.dumps(data, indent=1) + "\n")

    def restore(self, store: KVStore, bounds: Sequence[tuple[int, int]]) -> int:
        """Bring back keys and values, and return how many layers or chunks are done.

        Raises:
            InputError: a file is not as the manifest says.
        """
        by_layers = self._settings["order"] == "layers"
        tokens = bounds[-1][1]
        last = tokens if by_layers else bounds[self._done - 1][1] if self._done else 0
        for layer, heads in enumerate(self._heads):
            shapes = {name: (*own[:2], 0, own[2]) for name, own in heads.items()}
            dtype = DTYPES[self._settings["dtype"]]
            device = torch.device(self._settings["device"])
            like = Buffer(
                **{n: torch.empty(shape, dtype=dtype, device=device) for n, shape in shapes.items()}
            )
            store.restore(layer, last, like)
        return self._done

    def keep_hidden(
        self, layer: int, first: int, hidden: Float[Tensor, "b n hidden"], *, tokens: int
    ) -> None:
        """Save what goes into a layer.

        Args:
            first: place of the first token.
            tokens: of the prompt.
        """
        self._hidden_file(layer, hidden.shape[0], tokens, hidden.shape[2], existing=False).write(
            first, hidden
        )

    def hidden(self, layer: int, first: int, *, last: int) -> Float[Tensor, "b n hidden"]:
        """Return what goes into a layer."""
        (b, tokens), width = self._settings["shape"], self._settings["hidden_size"]
        device = torch.device(self._settings["device"])
        out = torch.empty((b, last - first, width), dtype=DTYPES[self._settings["dtype"]])
        self._hidden_file(layer, b, tokens, width, existing=True).read(first, out)
        return out.to(device)

    def _hidden_file(
        self, layer: int, b: int, tokens: int, width: int, *, existing: bool
    ) -> TokenFile:
        turn = layer % 2
        if turn not in self._files:
            self._files[turn] = TokenFile(
                self.folder / f"hidden-{turn}",
                rows=b,
                tokens=tokens,
                width=width,
                dtype=DTYPES[self._settings["dtype"]],
                existing=existing,
            )
        return self._files[turn]


def settings_of(
    model: nn.Module,
    ids: Int[Tensor, "b n"],
    run: Run,
    bounds: Sequence[tuple[int, int]],
    *,
    kv: str,
) -> dict[str, Any]:
    """Describe what must be the same for a prefill to go on."""
    parameter = next(model.parameters())
    config: Any = model.config
    patterns = [[to_dict(own) for own in layer] for layer in run.profile.layers]
    return {
        "architecture": asdict(run.profile.architecture),
        "model": weights_sha256(model),
        "config": _config_sha256(config),
        "prompt": hashlib.sha256(ids.cpu().contiguous().numpy().tobytes()).hexdigest(),
        "shape": list(ids.shape),
        "hidden_size": config.get_text_config().hidden_size,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
        "bounds": [list(own) for own in bounds],
        "patterns": hashlib.sha256(json.dumps(patterns).encode()).hexdigest(),
        "backend": run.backend,
        "min_length": run.min_length,
        "kv": kv,
    }


def _config_sha256(config: Any) -> str:
    """Hash all that a model's config says, but what it and its release are called."""
    said = {name: own for name, own in config.to_dict().items() if name not in NAMES}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _lock(folder: Path) -> Any:
    """Hold a folder for this process, made if need be.

    Raises:
        InputError: it cannot be written, or another process reads into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise InputError(f"save_kv must be a folder to write to, got {folder}: {error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(
            f"another process reads a prompt into {folder}; wait for it, or save to another folder"
        ) from None
    return file


def _counts(*values: object) -> bool:
    return all(type(value) is int and value > 0 for value in values)
