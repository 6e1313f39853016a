"""Write files so that a reader sees the old one or the whole new one."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, all or nothing; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(scratch, 0o644)  # mkstemp makes it private
        os.replace(scratch, path)
    except BaseException as error:
        Path(scratch).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk
        raise


def scratch_of(path: Path) -> list[Path]:
    """List what is left of a file whose writers were killed before it was whole."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")  # as mkstemp names it
    near = path.parent.iterdir() if path.parent.is_dir() else ()
    return [found for found in near if ours.fullmatch(found.name)]
