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
        options = cls(**given)
        options._check()
        return options

    def _check(self) -> None:
        for name in ("profile", "pattern"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"{name} must be a text, got {value!r}")
        if self.profile is not None and self.pattern is not None:
            raise InputError("give a profile or a pattern, got both; leave one out")
        for name, least in (("min_length", 1), ("recall_every", 0)):
            value = getattr(self, name)
            if value is None and name == "min_length":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a number from {least} on, got {value!r}")
        if not isinstance(self.backend, str):
            raise InputError(f"backend must be a text, got {self.backend!r}")
