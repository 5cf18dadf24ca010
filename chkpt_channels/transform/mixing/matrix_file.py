"""The user's own mixing matrix: rows of numbers, or a .npy, .csv or .json file of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from typing import Any

from chkpt_channels.core.errors import UsageError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.opening import contents
from chkpt_channels.transform.mixing.matrix import Matrix


def parse_matrix(matrix_or_path: str | os.PathLike[str] | Sequence[Sequence[float]]) -> Matrix:
    """The matrix [old channels, new channels], given as rows or as the path of a file. Raises UsageError for what is no matrix of
    finite numbers, FileSystemError for a file that cannot be read."""
    rows = _read(matrix_or_path) if isinstance(matrix_or_path, str | os.PathLike) else matrix_or_path
    file = os.fspath(matrix_or_path) if isinstance(matrix_or_path, str | os.PathLike) else ""
    try:
        matrix = tuple(tuple(_number(value) for value in row) for row in rows)
    except (TypeError, ValueError, OverflowError):
        raise UsageError("--matrix must be rows of numbers, [old channels, new channels]", file=file) from None
    if not matrix or not matrix[0] or len({len(row) for row in matrix}) != 1:
        raise UsageError("--matrix must have a row for each old channel, and a number for each new one in every row", file=file)
    if any(value != value or abs(value) == float("inf") for row in matrix for value in row):
        raise UsageError("--matrix takes finite numbers", file=file)
    return matrix


def _number(value: Any) -> float:
    """The number of a cell. Raises TypeError for texts and booleans, which Python would take for numbers."""
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's as Python's
    if isinstance(value, str | bytes | bool):
        raise TypeError(value)
    return float(value)


def _read(path: str | os.PathLike[str]) -> Sequence[Sequence[float]]:
    """The rows of a .npy, .csv or .json file."""
    name = os.fspath(path)
    kind = os.path.splitext(name)[1].lower()
    if kind not in _PARSERS:
        raise UsageError("--matrix must be a .npy, .csv or .json file", file=name)
    try:
        return _PARSERS[kind](contents(name, LIMITS.matrix_bytes))
    except (ValueError, EOFError, RecursionError) as error:
        raise UsageError(f"--matrix cannot be read as {kind}: {str(error).splitlines()[0][:200]}", file=name) from None


def _npy(raw: bytes) -> Sequence[Sequence[float]]:
    import io

    import numpy as np

    stream = io.BytesIO(raw)
    is_first = np.lib.format.read_magic(stream) == (1, 0)
    shape, _, dtype = (np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0)(stream)
    if prod(shape) * dtype.itemsize > len(raw):  # before an array of that size is made
        raise ValueError(f"its header says {list(shape)}, and it holds {len(raw)} bytes")
    rows: Sequence[Sequence[float]] = np.load(io.BytesIO(raw), allow_pickle=False).tolist()
    return rows


def _csv(raw: bytes) -> Sequence[Sequence[float]]:
    import csv

    try:
        rows = [row for row in csv.reader(raw.decode("utf-8-sig").splitlines()) if row]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    return [[float(cell) for cell in row] for row in rows]


def _json(raw: bytes) -> Sequence[Sequence[float]]:
    import json

    rows: Sequence[Sequence[float]] = json.loads(raw)
    return rows


_PARSERS = {".npy": _npy, ".csv": _csv, ".json": _json}
