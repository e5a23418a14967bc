"""Tables on disk or in memory: .npz and .npy files, held against a model's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.errors import DataError
from onnxrank.graph.model import TensorInfo
from onnxrank.runtime.arrays import (
    Column,
    MemoryColumn,
    StoredColumn,
    check_sizes,
    open_npy,
    open_npz,
)
from onnxrank.runtime.check import GROUP, LABEL, check_dtype, check_names, check_shape
from onnxrank.runtime.session import Run
from onnxrank.runtime.tables import Arrays, TableSource, settle


@dataclass(frozen=True, eq=False)
class Part:
    """The columns of one file, or of files that go together."""

    label: str
    columns: Mapping[str, Column]
    size: int


@dataclass(frozen=True, eq=False)
class FileTable:
    """Files one after the other."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(part.size for part in self.parts)

    def column(self, name: str) -> NDArray[Any] | None:
        """All of one column, over all files; None if no file has it."""
        found = [part.columns[name] for part in self.parts if name in part.columns]
        if not found:
            return None
        pieces = []
        for column in found:
            with column.reader() as reader:
                pieces.append(reader.take(column.shape[0]))
        return np.concatenate(pieces)

    def chunks(self, step: int, used: NDArray[np.bool_]) -> Iterator[tuple[int, Arrays, str]]:
        """Consecutive pieces of at most `step` samples with any used: start, arrays, file."""
        start = 0
        for part in self.parts:
            wanted = used[start : start + part.size]
            if wanted.any():
                for at, arrays in _read(part, step, wanted):
                    yield start + at, arrays, part.label
            start += part.size


def open_arrays(folder_or_file: Path, inputs: Sequence[TensorInfo], run: Run) -> TableSource:
    """Data of a .npz or .npy file, or of a folder of those."""
    files = [folder_or_file]
    if folder_or_file.is_dir():
        files = sorted(p for p in folder_or_file.iterdir() if p.suffix in (".npz", ".npy"))
    return table_source(str(folder_or_file), FileTable(_parts(files, inputs)), inputs, run)


def memory_source(arrays: Mapping[str, Any], inputs: Sequence[TensorInfo], run: Run) -> TableSource:
    """Data of arrays in memory."""
    columns = {name: MemoryColumn(np.asarray(value)) for name, value in arrays.items()}
    part = Part("the arrays", columns, check_sizes(columns, "the arrays"))
    return table_source("arrays in memory", FileTable((part,)), inputs, run)


def table_source(
    description: str, table: FileTable, inputs: Sequence[TensorInfo], run: Run
) -> TableSource:
    """Hold the files against the model's inputs, and settle batches and folds."""
    ranks = [_check_part(part, inputs) for part in table.parts]
    for part, rank in zip(table.parts, ranks, strict=True):
        if rank != ranks[0] or set(part.columns) != set(table.parts[0].columns):
            raise DataError(
                f"its arrays differ in kind from those of {table.parts[0].label}", where=part.label
            )
    stacked = frozenset(name for name, extra in ranks[0].items() if extra)
    fixed = _fixed(inputs, ranks[0], description)
    return settle(
        description,
        table,
        run,
        fixed=fixed,
        stacked=stacked,
        groups=table.column(GROUP),
        labelled=LABEL in table.parts[0].columns,
    )


def _read(part: Part, step: int, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, Arrays]]:
    last = int(np.flatnonzero(wanted)[-1])
    columns = {name: column for name, column in part.columns.items() if name != GROUP}
    with ExitStack() as stack:
        readers = {n: stack.enter_context(c.reader()) for n, c in columns.items()}
        for start in range(0, last + 1, step):
            count = min(step, part.size - start)
            if wanted[start : start + count].any():
                yield start, {name: reader.take(count) for name, reader in readers.items()}
            else:
                for reader in readers.values():
                    reader.skip(count)


def _parts(files: Sequence[Path], inputs: Sequence[TensorInfo]) -> tuple[Part, ...]:
    needed = [info.name for info in inputs if not info.optional]
    arrays = [path for path in files if path.suffix == ".npy"]
    by_name = {path.stem: path for path in arrays}
    if len(needed) > 1 and set(needed) <= set(by_name):
        return (_part(arrays[0].parent, {n: open_npy(p) for n, p in by_name.items()}, inputs),)
    parts = []
    for path in files:
        if path.suffix == ".npy":
            if len(needed) != 1:
                listed = ", ".join(map(repr, needed))
                raise DataError(
                    f"a .npy file feeds one input, but the model has {listed}",
                    where=str(path),
                    hint="use a .npz file, its keys the input names",
                )
            parts.append(_part(path, {needed[0]: open_npy(path)}, inputs))
        else:
            parts.append(_part(path, open_npz(path), inputs))
    return tuple(parts)


def _part(path: Path, columns: dict[str, StoredColumn], inputs: Sequence[TensorInfo]) -> Part:
    """Check names and sizes; give bfloat16, which a .npy file cannot name, its type back."""
    check_names(columns, inputs, str(path))
    for info in inputs:
        column = columns.get(info.name)
        if column and info.dtype == onnx.TensorProto.BFLOAT16 and column.dtype == np.dtype("V2"):
            columns[info.name] = replace(column, dtype=np.dtype(ml_dtypes.bfloat16))
    return Part(str(path), columns, check_sizes(columns, str(path)))


def _check_part(part: Part, inputs: Sequence[TensorInfo]) -> dict[str, int]:
    """Check types and shapes; tell how many axes each input has beyond the declared ones."""
    check_names(part.columns, inputs, part.label)
    extra = {}
    for info in inputs:
        column = part.columns.get(info.name)
        if column is None:
            continue
        if not info.dtype:
            raise DataError(
                f"input {info.name!r} is no tensor", where=part.label, hint="use a loader"
            )
        check_dtype(column.dtype, info, part.label)
        rank = len(column.shape) if info.shape is None else len(info.shape)
        extra[info.name] = int(len(column.shape) == rank + 1)
        if extra[info.name]:
            check_shape(column.shape[1:], info, part.label)
        else:
            check_shape(column.shape, info, part.label, start=1)
    return extra


def _fixed(inputs: Sequence[TensorInfo], extra: Mapping[str, int], where: str) -> int | None:
    """Batch size that the model fixes for the arrays that are cut, if it does."""
    found = {
        info.name: info.shape[0]
        for info in inputs
        if info.shape and not extra.get(info.name, 1) and isinstance(info.shape[0], int)
    }
    sizes = set(found.values()) | ({1} if any(extra.values()) else set())
    if len(sizes) > 1:
        listed = ", ".join(f"{name!r} {size}" for name, size in found.items())
        raise DataError(
            f"the model fixes different leading dimensions: {listed}",
            where=where,
            hint="stack complete feeds along a new first axis, or use a loader",
        )
    return next(iter(sizes), None)
