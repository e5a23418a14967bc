"""Arrays on disk, read along their first axis in pieces: .npy files and members of .npz files."""

from __future__ import annotations

import contextlib
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import DataError

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)


class Reader(Protocol):
    """Reads samples of one array, in order."""

    def take(self, count: int) -> NDArray[Any]:
        """The next `count` samples."""

    def skip(self, count: int) -> None:
        """Pass over `count` samples."""


class Column(Protocol):
    """An array whose first axis counts samples."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, samples first."""

    def reader(self) -> contextlib.AbstractContextManager[Reader]:
        """Start reading at the first sample."""


@dataclass(frozen=True, eq=False)
class MemoryColumn:
    """An array in memory."""

    array: NDArray[Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, samples first."""
        return self.array.shape

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Start reading at the first sample."""
        yield _MemoryReader(self.array)


@dataclass(frozen=True)
class StoredColumn:
    """An array in a file.

    Attributes
    ----------
    path : Path
        A .npy file, or a .npz file.
    member : str or None
        Name within the .npz file.
    dtype, shape
        As the file states them.
    offset : int
        Bytes before the data.
    fortran : bool
        Stored last axis first, so that it cannot be read in pieces.
    """

    path: Path
    member: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    fortran: bool = False

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return self.dtype.itemsize * prod(self.shape[1:])

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Start reading at the first sample."""
        with _naming(self.path), _stream(self.path, self.member) as stream:
            if self.fortran:
                yield _MemoryReader(np.lib.format.read_array(stream, allow_pickle=False))
            else:
                stream.seek(self.offset)
                yield _StreamReader(stream, self)


def open_npz(path: Path) -> dict[str, StoredColumn]:
    """Columns of a .npz file by name; only headers are read."""
    with _naming(path):
        if not zipfile.is_zipfile(path):
            raise DataError("this is no .npz file, or it is truncated", where=str(path))
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {
            info.filename[: -len(".npy")]: _column(path, info.filename, info.file_size)
            for info in members
        }


def open_npy(path: Path) -> StoredColumn:
    """Return the column that a .npy file holds; only its header is read."""
    with _naming(path):
        return _column(path, None, path.stat().st_size)


def check_sizes(columns: Mapping[str, Column], where: str) -> int:
    """Return the number of samples that all columns agree on."""
    for name, column in columns.items():
        if not column.shape:
            raise DataError(
                f"{name!r} is a scalar, without an axis of samples",
                where=where,
                hint="stack one value a step, or use a loader",
            )
    sizes = {name: column.shape[0] for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
        raise DataError(f"the arrays differ in their number of samples: {listed}", where=where)
    return next(iter(sizes.values()), 0)


class _MemoryReader:
    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self._place = 0

    def take(self, count: int) -> NDArray[Any]:
        self._place += count
        return self._array[self._place - count : self._place]

    def skip(self, count: int) -> None:
        self._place += count


class _StreamReader:
    def __init__(self, stream: IO[bytes], column: StoredColumn) -> None:
        self._stream = stream
        self._column = column

    def take(self, count: int) -> NDArray[Any]:
        array = np.empty((count, *self._column.shape[1:]), self._column.dtype)
        if array.nbytes:
            _fill(array.reshape(-1).view(np.uint8).data, self._stream)
        return array

    def skip(self, count: int) -> None:
        self._stream.seek(count * self._column.sample_bytes, 1)


def _fill(target: memoryview, stream: IO[bytes]) -> None:
    """Read until `target` is full."""
    while target:
        got = stream.readinto(target)  # type: ignore[attr-defined]
        if not got:
            raise EOFError("it ends within an array")
        target = target[got:]


@contextmanager
def _stream(path: Path, member: str | None) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        if member is None:
            yield stack.enter_context(path.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            yield stack.enter_context(archive.open(member))


def _column(path: Path, member: str | None, size: int) -> StoredColumn:
    """Read the header, and hold it against the size of the file."""
    with _stream(path, member) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise DataError(f"npy format {version} is not read", where=str(path))
        column = StoredColumn(path, member, dtype, shape, stream.tell(), fortran)
    name = f"{member[:-4]!r}" if member else "the array"
    if dtype.hasobject:
        raise DataError(
            f"{name} holds Python objects, which are never unpickled",
            where=str(path),
            hint="save text as a string array (dtype=str)",
        )
    if column.offset + dtype.itemsize * prod(shape) != size:
        raise DataError(f"{name} is truncated or damaged", where=str(path))
    return column


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into an error that names it."""
    try:
        yield
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"it cannot be read: {reason}", where=str(path)) from error
