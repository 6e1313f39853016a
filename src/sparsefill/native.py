"""The shared library of compiled kernels: where it is, and why it may be missing.

A leaf under the backends: it is looked for when first asked for, never at import, and
holds no Python ABI, so one library serves every version of Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from importlib import metadata
from pathlib import Path

ABI_VERSION = 2  # of csrc/sparsefill.h; raised there and here with each new function or signature
FILE_NAME = "libsparsefill.so"

REINSTALL = "reinstall with pip install --force-reinstall --no-cache-dir sparsefill"


def library() -> ctypes.CDLL | None:
    """Return the library of compiled kernels, or None where there is none to use.

    Example:
        >>> from sparsefill import native
        >>> (native.library() is None) == (native.missing_reason() is not None)
        True
    """
    return _load()[0]


def missing_reason() -> str | None:
    """Say why `library` returns None and what to do, or return None if it does not."""
    return _load()[1]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library; return it or the reason why not."""
    path = _find()
    if path is None:
        return None, (
            "no compiled kernels in this installation; install a wheel, or a C++ compiler"
            f" (apt install g++) and {REINSTALL}"
        )
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path} cannot be loaded ({error}); {REINSTALL}"
    asked = getattr(loaded, "sparsefill_abi_version", None)  # None: another library's file
    version = asked() if asked else None
    if version != ABI_VERSION:
        return None, (
            f"{path} must have ABI version {ABI_VERSION}, got {version}; {REINSTALL}"
            " (in a checkout: pip install -e .)"
        )
    return loaded, None


def _find() -> Path | None:
    """Return the path of the library: beside this file, or where pip installed what was built.

    These differ in an editable install, which leaves the sources where they are.
    """
    folders = [Path(__file__).parent]
    with contextlib.suppress(metadata.PackageNotFoundError):
        folders.append(Path(str(metadata.distribution("sparsefill").locate_file("sparsefill"))))
    paths = (folder / FILE_NAME for folder in folders)
    return next((path for path in paths if path.is_file()), None)
