"""What the user asks for, in vLLM's `--additional-config '{"sparsefill": {...}}'`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sparsefill.errors import InputError

KEY = "sparsefill"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the plugin.

    Args:
        profile: file, or name of a shipped profile; the default profile of the model's
            architecture when neither it nor a pattern is given.
        pattern: one pattern for all heads, as the command line writes it, in place of a profile.
        min_length: keys from which prompts are read by their patterns; when None, from where
            that is predicted to be faster, head by head.
        recall_every: of every so many prompts that are read sparsely one has its recall
            measured, in a few row blocks; 0 for none.
        backend: which of our kernels attend.
    """

    profile: str | None = None
    pattern: str | None = None
    min_length: int | None = None
    recall_every: int = 0
    backend: str = "auto"

    @classmethod
    def parse(cls, additional_config: Any) -> Options:
        """Read the options out of vLLM's additional config.

        Raises:
            InputError: an option is unknown, or of the wrong kind.

        Example:
            >>> Options.parse({"sparsefill": {"pattern": "dense"}}).pattern
            'dense'
        """
        given = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
        if not isinstance(given, Mapping):
            raise InputError(f'"{KEY}" of --additional-config must be an object, got {given!r}')
        known = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(
                f'"{KEY}" of --additional-config has no option {unknown[0]!r}; use'
                f" {', '.join(known)}"
            )
        _require_kinds(given)
        if given.get("profile") is not None and given.get("pattern") is not None:
            raise InputError("give a profile or a pattern, got both; leave one out")
        return cls(**given)


def _require_kinds(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is None and name in ("profile", "pattern", "min_length"):
            continue
        if name in ("profile", "pattern", "backend") and not isinstance(value, str):
            raise InputError(f"{name} must be a text, got {value!r}")
        least = {"min_length": 1, "recall_every": 0}.get(name)
        if least is not None and not (type(value) is int and value >= least):
            raise InputError(f"{name} must be a number from {least} on, got {value!r}")
