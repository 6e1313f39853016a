"""Tensors in files, written and read token by token: keys, values, the residual stream.

Plain reads and writes: the pages of a mapped file would count as the process's own memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from sparsefill.errors import InputError


class TokenFile:
    """A file of shape (rows, tokens, width).

    Args:
        path: the file; made, or kept where it has the right size.
        rows: of tokens, such as sequences and heads.
        tokens: of each row.
        width: values of a token.
        dtype: of the values.
        existing: the file must be there.

    Raises:
        InputError: it is not there, or has another size.
    """

    def __init__(
        self,
        path: Path,
        *,
        rows: int,
        tokens: int,
        width: int,
        dtype: torch.dtype,
        existing: bool = False,
    ) -> None:
        self.path, self.rows, self.tokens = path, rows, tokens
        self.width, self.dtype = width, dtype
        self._token_bytes = width * dtype.itemsize
        size = rows * tokens * self._token_bytes
        if not path.is_file() or path.stat().st_size != size:
            if existing:
                raise InputError(
                    f"{path} must be a file of {size} bytes, but is not there or cut short;"
                    " prefill again into another folder"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(size)

    def write(self, first: int, values: Shaped[Tensor, "... n width"]) -> None:
        """Write tokens of all rows.

        Args:
            first: place of the first of them.
            values: with as many leading entries as there are rows.
        """
        with self.path.open("r+b", buffering=0) as file:
            for row, own in enumerate(_rows(values)):
                data = own.detach().contiguous().cpu().view(torch.uint8).numpy()
                _all(os.pwrite, file.fileno(), data.data.cast("B"), self._at(row, first))

    def read(self, first: int, out: Shaped[Tensor, "... n width"]) -> None:
        """Read tokens of all rows into a tensor.

        Raises:
            InputError: the file is shorter than it should be.
        """
        with self.path.open("rb", buffering=0) as file:
            for row, own in enumerate(_rows(out)):
                fresh = own if own.device.type == "cpu" and own.is_contiguous() else None
                target = torch.empty_like(own, device="cpu") if fresh is None else fresh
                data = target.view(torch.uint8).numpy().data.cast("B")
                if not _all(_read_into, file.fileno(), data, self._at(row, first)):
                    raise InputError(
                        f"{self.path} must hold {self.rows} x {self.tokens} tokens, but ends"
                        " early; prefill again without resume"
                    )
                if fresh is None:
                    own.copy_(target)

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _at(self, row: int, first: int) -> int:
        return (row * self.tokens + first) * self._token_bytes


def _rows(values: Shaped[Tensor, "... n width"]) -> list[Tensor]:
    """List the rows as views: a flattened tensor may be a copy."""
    rows = [values]
    while rows[0].ndim > 2:
        rows = [part for row in rows for part in row.unbind(0)]
    return rows


def _read_into(descriptor: int, data: memoryview, at: int) -> int:
    return os.preadv(descriptor, [data], at)


def _all(
    move: Callable[[int, memoryview, int], int], descriptor: int, data: memoryview, at: int
) -> bool:
    """Read or write until nothing is left; the system may do less than it is asked for."""
    while len(data):
        done = move(descriptor, data, at)
        if done == 0:
            return False
        data, at = data[done:], at + done
    return True
