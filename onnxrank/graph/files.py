"""Write a model: complete, verified, then put in place by one rename; or nothing at all."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import onnx
import onnx.checker
from google.protobuf.message import DecodeError, EncodeError

from onnxrank.errors import ModelError, WriteError
from onnxrank.graph import external
from onnxrank.graph.model import Model
from onnxrank.graph.scopes import walk

# Offsets that every platform can map into memory, as onnx itself writes them.
_ALIGN = 4096
_CHUNK = 1 << 24
# Smaller tensors stay in the .onnx file, where shape inference can read them.
_LEAST = 1024


@contextmanager
def staged(model: Model, proto: onnx.ModelProto, output: Path) -> Iterator[Path]:
    """Write `proto` beside `output` under a temporary name, and commit it on leaving.

    The body of the ``with`` verifies the file it is given. Leaving normally renames that file to
    `output`, the one step that makes the result visible; an exception removes everything. External
    data go to fresh files named by their content, so an existing file is never overwritten.

    Parameters
    ----------
    model : Model
        Where `proto` came from; its external data are copied span by span.
    proto : ModelProto
        What to write; its new tensors may be moved out of it.
    output : Path
        The .onnx file to make or replace.

    Raises
    ------
    WriteError
        The folder is missing or read-only, or `output` is the source or its data.
    """
    check_output(model, output)
    made: list[Path] = []
    temporary = output.parent / f".{output.name}.{secrets.token_hex(4)}.tmp.onnx"
    try:
        try:
            _move_out(model, proto, output, made)
            made.append(temporary)
            _write(temporary, proto.SerializeToString(deterministic=True))
            del proto  # the tensors that were moved out of it go with it, and not before
        except (EncodeError, ValueError, RuntimeError):
            raise WriteError(
                "the result is above 2 GB and cannot be one file",
                where=str(output),
                hint="save the original with external data first",
            ) from None
        except OSError as error:
            raise WriteError(f"cannot be written: {error.strerror}", where=str(output)) from None
        yield temporary
        replaced = _own_data(output) if len(made) > 1 else set()
        try:
            os.replace(temporary, output)
        except OSError as error:
            raise WriteError(
                f"cannot be put in place: {error.strerror}", where=str(output)
            ) from None
        made.clear()
        _sync_folder(output.parent)
        if replaced:
            _remove(replaced - _own_data(output))
    finally:
        # Once it has been renamed the result stands, whatever comes in between.
        if temporary not in made or temporary.exists():
            _remove(reversed(made))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _own_data(output: Path) -> set[Path]:
    """Data files that an earlier result at `output` named after itself and its content."""
    pattern = re.compile(re.escape(output.name) + r"\.[0-9a-f]{12}\.data")
    found: set[Path] = set()
    with suppress(OSError, DecodeError):
        proto = onnx.ModelProto.FromString(output.read_bytes())
        entries = [e for t in external.tensors(proto) for e in t.external_data]
        names = {e.value for e in entries if e.key == "location"}
        found = {output.parent / n for n in names if isinstance(n, str) and pattern.fullmatch(n)}
    return found


def check_output(model: Model, output: Path) -> None:
    """Refuse an output that cannot be written, or that would overwrite the source.

    Raises
    ------
    WriteError
        See `staged`.
    """
    where, folder = str(output), output.parent
    if not folder.is_dir():
        raise WriteError("its folder does not exist", where=where, hint=f"make {folder} first")
    if output.is_dir():
        raise WriteError("this is a folder", where=where, hint="name a file in it")
    if not os.access(folder, os.W_OK | os.X_OK) or (
        output.exists() and not os.access(output, os.W_OK)
    ):
        raise WriteError("cannot be written: permission denied", where=where)
    sources = {model.path} if model.path else set()
    sources |= {
        external.place(t, model.folder, model.name).path
        for t in external.tensors(model.proto)
        if external.is_external(t)
    }
    for source in sources:
        if output.exists() and source.exists() and output.samefile(source):
            raise WriteError(
                "the output is the model itself or its data",
                where=where,
                hint="choose another name",
            )


def _move_out(model: Model, proto: onnx.ModelProto, output: Path, made: list[Path]) -> None:
    """Give every external tensor, and new large ones beside them, a place in fresh files."""
    groups = _groups(model, proto)
    for location, tensors in groups.items():
        target = _data_name(output, location, single=len(groups) == 1)
        folder = (output.parent / target).parent
        _make(folder, made)
        temporary = folder / f".{output.name}.{secrets.token_hex(4)}.tmp"
        made.append(temporary)
        with open(temporary, "wb") as file:
            spans, digest = _copy_tensors(model, tensors, file)
            file.flush()
            os.fsync(file.fileno())
        name = target.with_name(f"{target.stem}.{digest[:12]}{target.suffix}")
        final = output.parent / name
        if not final.exists():
            os.replace(temporary, final)
            made.append(final)
        elif _digest(final) == digest:  # the same content was written before
            temporary.unlink()
        else:  # it was damaged since; what replaces it is not removed on failure
            os.replace(temporary, final)
        for tensor, (offset, length) in zip(tensors, spans, strict=True):
            _point(tensor, str(name), offset, length)


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder and what it lies in, noting what is new."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(new):
        path.mkdir(exist_ok=True)
        made.append(path)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _groups(model: Model, proto: onnx.ModelProto) -> dict[str, list[onnx.TensorProto]]:
    """External tensors by the file they lie in; new ones join the first file."""
    groups: dict[str, list[onnx.TensorProto]] = defaultdict(list)
    for tensor in external.tensors(proto):
        if external.is_external(tensor):
            location = next(e.value for e in tensor.external_data if e.key == "location")
            groups[location].append(tensor)
    if not any(external.is_external(t) for t in external.tensors(model.proto)):
        return {}
    # What lay inside stays there; what lay outside and brings other values goes out again.
    before = {t.name for t in external.tensors(model.document) if not external.is_external(t)}
    new = [
        t
        for t in proto.graph.initializer
        if t.name not in before and len(t.raw_data) >= _LEAST and not external.is_external(t)
    ]
    if new:
        groups[min(groups, default=f"{model.name}.data")] += new
    return dict(groups)


def _data_name(output: Path, location: str, *, single: bool) -> PurePosixPath:
    """One file is named after the output; several keep their names and folders."""
    if single:
        return PurePosixPath(f"{output.name}.data")
    return PurePosixPath(posixpath.normpath(location))


def _copy_tensors(
    model: Model, tensors: list[onnx.TensorProto], file: BinaryIO
) -> tuple[list[tuple[int, int]], str]:
    digest = hashlib.sha256()
    spans: list[tuple[int, int]] = []
    position = 0
    for tensor in tensors:
        padding = -position % _ALIGN
        for chunk in (bytes(padding), *_chunks(model, tensor)):
            file.write(chunk)
            digest.update(chunk)
            position += len(chunk)
        start = spans[-1][0] + spans[-1][1] if spans else 0
        start += -start % _ALIGN
        spans.append((start, position - start))
    return spans, digest.hexdigest()


def _chunks(model: Model, tensor: onnx.TensorProto) -> Iterator[bytes]:
    """The bytes of a tensor, a piece at a time; a tensor that holds them gives them up."""
    if not external.is_external(tensor):
        data = tensor.raw_data
        tensor.ClearField("raw_data")
        yield data
        return
    span = external.place(tensor, model.folder, model.name)
    with open(span.path, "rb") as source:
        source.seek(span.offset)
        left = span.length
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise ModelError(
                    "external data end too soon", where=f"{model.name}: tensor '{tensor.name}'"
                )
            left -= len(chunk)
            yield chunk


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def verify(path: Path, original: Model) -> None:
    """Check a written model with onnx, as strictly as the original passes.

    Raises
    ------
    ModelError
        The result fails a check that the original passes.
    """
    source = str(original.path) if original.path else original.proto
    # onnx ends the process at a Slice of an axis that is declared as -1.
    odd = any(dim < 0 for dim in _declared(original.proto))
    for full in (False,) if odd else (True, False):
        try:
            onnx.checker.check_model(source, full_check=full)
        except Exception:  # noqa: BLE001 - the checker raises of many kinds; the next is milder
            continue
        try:
            onnx.checker.check_model(str(path), full_check=full)
        except Exception as error:  # noqa: BLE001
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"the result fails onnx's checker: {first}",
                where=original.name,
                hint="this is a fault of onnxrank; leave the node out with --exclude and report it",
            ) from None
        return


def _declared(proto: onnx.ModelProto) -> Iterator[int]:
    """Every dimension that a model states for a tensor."""
    for _, graph in walk(proto.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                yield dim.dim_value
