"""A run's folder, in the hands of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sparsefill.atomic import scratch_of
from sparsefill.errors import InputError
from sparsefill.evals.manifest import MANIFEST

LOCK = ".lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a folder from other processes; it is made if need be.

    The lock is the system's and ends with the process, however that ends; its file stays.

    Raises:
        InputError: the folder is another process's, or holds something that is no run.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and not _is_unused(folder):
        raise InputError(f"--out must be a new folder or one of a run, got {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"another process is measuring into {folder}; wait until it ends, or pass another --out"
        ) from None
    except NotImplementedError as error:
        raise InputError(
            f"the file system of {folder} has no locks ({error}); pass --out elsewhere"
        ) from error
    try:
        for scratch in scratch_of(folder / MANIFEST):
            scratch.unlink()
        yield
    finally:
        lock.release()


def _is_unused(folder: Path) -> bool:
    """Tell whether there is nothing but what a run leaves that ended before it began."""
    ours = {folder / LOCK, *scratch_of(folder / MANIFEST)}
    return folder.is_dir() and ours.issuperset(folder.iterdir())
