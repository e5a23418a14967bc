"""A folder that appears whole, or not at all: written beside its place, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from onnxrank.errors import WriteError
from onnxrank.graph import external
from onnxrank.graph.model import Model

_CHUNK = 1 << 24


def check_place(directory: Path) -> None:
    """Refuse a folder that holds anything, or that cannot be made.

    Raises
    ------
    WriteError
        Saying which of these it is.
    """
    where = str(directory)
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise WriteError("exists and is no folder", where=where, hint="name a new folder")
    if directory.is_dir() and any(directory.iterdir()):
        raise WriteError("the folder is not empty", where=where, hint="name a new or an empty one")
    if directory == Path.cwd():
        raise WriteError("this is the current folder", where=where, hint="name a new one")
    parent = directory.parent
    if not parent.is_dir():
        raise WriteError("its folder does not exist", where=where, hint=f"make {parent} first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteError("cannot be written: permission denied", where=where)


@contextmanager
def staged_folder(directory: Path) -> Iterator[Path]:
    """A temporary folder beside `directory` that takes its place when the body ends well.

    Raises
    ------
    WriteError
        The disk is full, or the folder cannot be put in place.
    """
    temporary = directory.parent / f".{directory.name}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            temporary.mkdir()
            yield temporary
            for folder, _, _ in os.walk(temporary):
                _sync_folder(Path(folder))
        except OSError as error:
            raise WriteError(f"cannot be written: {error.strerror}", where=str(directory)) from None
        try:
            if os.name == "nt" and directory.is_dir():  # POSIX renames over an empty folder
                directory.rmdir()
            os.rename(temporary, directory)
        except OSError as error:
            raise WriteError(
                f"cannot be put in place: {error.strerror}", where=str(directory)
            ) from None
        _sync_folder(directory.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files, by their path in the folder."""
    for name, content in files.items():
        with _create(folder / name) as file:
            file.write(content)


@dataclass(frozen=True)
class Part:
    """One file of a model: where it lies, its path beside the .onnx file, and its bytes."""

    source: Path
    location: str
    size: int


def model_parts(model: Model, taken: frozenset[str]) -> list[Part]:
    """External data files of a model, each once, by the paths that the model knows them by.

    Parameters
    ----------
    model : Model
    taken : frozenset of str
        Names beside the model that the bundle needs for itself.

    Raises
    ------
    WriteError
        A file would lie outside the bundle, or where the bundle has another.
    """
    found: dict[str, Part] = {}
    for tensor in external.tensors(model.proto):
        if not external.is_external(tensor):
            continue
        place = external.place(tensor, model.folder, model.name)
        where = f"{model.name}: tensor '{tensor.name}'"
        if ".." in PurePosixPath(place.location).parts:
            raise WriteError(
                f"external data '{place.location}' cannot keep their path in a bundle",
                where=where,
                hint="save the model again with its data beside it",
            )
        if os.path.normpath(place.location) in taken:
            raise WriteError(
                f"the bundle has a file '{place.location}' of its own",
                where=where,
                hint="save the model again with another name for its data",
            )
        found[place.location] = Part(place.path, place.location, place.path.stat().st_size)
    return list(found.values())


def copy_model(
    model: Model, parts: list[Part], target: Path, progress: Callable[[int, int | None, str], None]
) -> None:
    """Copy a model byte by byte to `target`, and its external data beside it, in pieces."""
    total = sum(part.size for part in parts)
    done = 0
    for part in parts:
        with open(part.source, "rb") as source, _create(target.parent / part.location) as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(done, total, "copying")
    with _create(target) as file:
        if model.path is not None:
            with open(model.path, "rb") as source:
                shutil.copyfileobj(source, file, _CHUNK)
        else:
            file.write(model.proto.SerializeToString(deterministic=True))


@contextmanager
def _create(path: Path) -> Iterator[BinaryIO]:
    """A new file, safely on the disk when the body has ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make names durable, where the platform lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
