"""A report's folder: its own figures come and go with it, files of others stay."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sparsefill.atomic import write_atomically
from sparsefill.errors import InputError
from sparsefill.evals.fields import Fields
from sparsefill.strict_json import parse_json, read_text

LIST = "figures.json"  # those of the report
FIGURE = re.compile(r"figures/[A-Za-z0-9_-]+\.svg")


def write_files(out: Path, texts: Mapping[str, str]) -> None:
    """Write a report's files, and remove figures of an earlier one that are not among them.

    Raises:
        InputError: a file cannot be written, or the list of the earlier report's is damaged.
    """
    before = _listed(out)
    try:
        figures = {name for name in texts if FIGURE.fullmatch(name)}
        _list(out, before | figures)  # were this stopped, the next report would know of all
        for name, text in texts.items():
            write_atomically(out / name, text)
        for name in before - figures:
            (out / name).unlink(missing_ok=True)
        _list(out, figures)
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or out}: {error.strerror or error}; free space or make"
            " it writable, and run the report again"
        ) from error


def _list(out: Path, names: Iterable[str]) -> None:
    text = json.dumps({"figures": sorted(names)}, ensure_ascii=False, indent=1) + "\n"
    write_atomically(out / LIST, text)


def _listed(out: Path) -> set[str]:
    """Return the figures of the report that is there, if any."""
    path = out / LIST
    if not path.is_file():
        return set()
    source = str(path)
    found = Fields(
        parse_json(read_text(path, what="list of figures"), source=source), source=source
    )
    names = set(found.texts("figures"))
    found.end()
    for name in names:
        if not FIGURE.fullmatch(name):  # nothing else is ever removed
            raise InputError(f"{source}: {name!r} is no figure of a report; pass another --out")
    return names
