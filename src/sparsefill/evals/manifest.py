"""What a run was asked for, and where it ran: `manifest.json` of its folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

from sparsefill.errors import InputError
from sparsefill.evals.fields import Fields

SCHEMA = 2
MANIFEST = "manifest.json"
SETTINGS = (  # must agree between runs whose samples are compared
    "template",
    "seed",
    "haystack",
    "word_list",
    "rules",
    "one_layout",
    "dtype",
    "min_length",
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was run, and where.

    Args:
        tasks: names of tasks.
        weights: of the model: a hash.
        samples: of each task and length.
        methods: how each is set, by name.
        word_list: where RULER's words are from; empty where no task draws any.
        rules: whose limits on answers and whose scores hold.
        one_layout: RULER's samples of a task are laid out alike, as by its authors' program.
        min_length: keys below which methods stay dense; None where each decides.
        recall: whether it was measured.
        environments: versions and machine, of all in which rows were measured, the first one
            first.
    """

    tasks: tuple[str, ...]
    model: str
    weights: str
    template: str
    seed: int
    samples: int
    lengths: tuple[int, ...]
    methods: dict[str, dict[str, Any]]
    haystack: dict[str, Any]
    word_list: dict[str, Any]
    rules: str
    one_layout: bool
    dtype: str
    device: str
    backend: str
    min_length: int | None
    recall: bool
    environments: tuple[dict[str, Any], ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Describe it as `manifest.json` does."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {name: list(own) for name, own in data.items() if isinstance(own, tuple)}
        return {"schema": SCHEMA, **data, **lists}

    def text(self) -> str:
        """Write it as `manifest.json` has it."""
        return json.dumps(self.as_data(), indent=1, sort_keys=True) + "\n"

    @property
    def config_hash(self) -> str:
        """Tell apart what decides rows: everything but the environments."""
        data = self.as_data()
        del data["environments"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]

    def agrees_on(self, setting: str, other: Manifest) -> bool:
        """Tell whether a setting is the same; a word list that nobody drew from is any."""
        one, two = getattr(self, setting), getattr(other, setting)
        return one == two or (setting == "word_list" and not (one and two))

    @classmethod
    def parse(cls, data: Any, *, source: str) -> Manifest:
        """Check a manifest's data.

        Raises:
            InputError: another schema, or something missing, unknown or of the wrong kind.
        """
        found = Fields(data, source=source)
        schema = found.whole("schema")
        if schema != SCHEMA:
            raise InputError(
                f"{source}: schema must be {SCHEMA}, got {schema}; go on with it, and report it,"
                " by the version of sparsefill that began it"
            )
        manifest = cls(
            tasks=tuple(found.texts("tasks")),
            model=found.text("model"),
            weights=found.text("weights"),
            template=found.text("template"),
            seed=found.whole("seed", least=None),
            samples=found.whole("samples"),
            lengths=tuple(found.wholes("lengths")),
            methods=found.mappings("methods"),
            haystack=found.mapping("haystack"),
            word_list=found.mapping("word_list"),
            rules=found.text("rules"),
            one_layout=found.truth("one_layout"),
            dtype=found.text("dtype"),
            device=found.text("device"),
            backend=found.text("backend"),
            min_length=found.whole("min_length") if found.given("min_length") else None,
            recall=found.truth("recall"),
            environments=tuple(found.objects("environments")),
        )
        found.end()
        return manifest
