"""External data: where the bytes of a tensor lie; read one at a time, never outside the folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxrank.errors import ModelError
from onnxrank.graph.scopes import bodies, walk
from onnxrank.graph.sizes import check_size


@dataclass(frozen=True)
class Place:
    """A span of bytes in a file.

    Attributes
    ----------
    path : Path
        The file, resolved.
    location : str
        Its name as the model gives it, relative to the model's folder.
    offset, length : int
        Bytes.
    """

    path: Path
    location: str
    offset: int
    length: int


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's bytes lie in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model that can be external: initializers and attributes, all scopes."""
    graphs = [graph for _, graph in walk(proto.graph)]
    for training in proto.training_info:
        graphs += [
            g for part in (training.initialization, training.algorithm) for _, g in walk(part)
        ]
    for function in proto.functions:
        held = [body for node in function.node for _, body in bodies(node)]
        graphs += [graph for body in held for _, graph in walk(body)]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for function in proto.functions for node in function.node]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def place(tensor: onnx.TensorProto, folder: Path | None, where: str) -> Place:
    """Where the bytes of an external tensor lie.

    Raises
    ------
    ModelError
        The file is missing, too short, or outside the model's folder.
    """
    at = f"{where}: tensor '{tensor.name}'"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(
            "its data are in another file, and the folder is not known",
            where=at,
            hint="give the path of the model instead of a ModelProto",
        )
    path = _inside(location, folder, at)
    try:
        offset = int(entries.get("offset") or 0)
        size = path.stat().st_size
        length = int(entries["length"]) if "length" in entries else size - offset
    except ValueError:
        raise ModelError("offset or length is no number", where=at, hint=_AGAIN) from None
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"external data '{location}' has {size} bytes, "
            f"but {length} are wanted from byte {offset}",
            where=at,
            hint="the file is truncated; copy it again",
        )
    return Place(path, location, offset, length)


_AGAIN = "the model is damaged; export it again"


def _inside(location: str, folder: Path, at: str) -> Path:
    root = folder.resolve()
    if not location or isinstance(location, bytes) or "\0" in location:
        raise ModelError("external data without a location", where=at, hint=_AGAIN)
    path = root / location
    try:
        resolved = path.resolve()
        outside = not resolved.is_relative_to(root)
        present = resolved.is_file()
    except (OSError, ValueError, RuntimeError):
        raise ModelError(f"external data '{location}' is no usable path", where=at) from None
    if Path(location).is_absolute() or outside:
        raise ModelError(
            f"external data '{location}' leave the model's folder",
            where=at,
            hint="this is refused; move the data beside the model and export it again",
        )
    if not present:
        raise ModelError(
            f"external data '{location}' not found",
            where=at,
            hint=f"put the file into {folder}",
        )
    return resolved


def home(proto: onnx.ModelProto, path: Path) -> Path:
    """The folder that external data are relative to.

    Download caches keep a model and its data under other names in one folder, and link to them
    from another. Where `path` is such a link, the names are replaced by those behind the links:
    onnxruntime follows none that leave the folder.
    """
    folder, real = path.parent.resolve(), path.resolve().parent
    entries = [
        entry
        for tensor in tensors(proto)
        if is_external(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    if folder == real or not entries or any(isinstance(e.value, bytes) for e in entries):
        return folder
    targets = []
    for entry in entries:
        location = Path(entry.value)
        if location.is_absolute() or ".." in location.parts or "\0" in entry.value:
            return folder
        there = folder if (folder / location).exists() else real
        targets.append((there / location).resolve())
    if not all(target.is_relative_to(real) for target in targets):
        return folder
    for entry, target in zip(entries, targets, strict=True):
        entry.value = target.relative_to(real).as_posix()
    return real


def check(proto: onnx.ModelProto, folder: Path | None, where: str) -> None:
    """Refuse, before any work, external data that are missing, short or out of bounds.

    Raises
    ------
    ModelError
        As `place`, or a tensor whose bytes do not fit its shape.
    """
    for tensor in tensors(proto):
        held = place(tensor, folder, where).length if is_external(tensor) else None
        check_size(tensor, held, f"{where}: tensor '{tensor.name}'")


def materialize(tensor: onnx.TensorProto, folder: Path | None, where: str) -> onnx.TensorProto:
    """The tensor with its bytes inside; the argument itself where they already are.

    Raises
    ------
    ModelError
        As `place`.
    """
    if not is_external(tensor):
        return tensor
    span = place(tensor, folder, where)
    loaded = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    with open(span.path, "rb") as file:
        file.seek(span.offset)
        loaded.raw_data = file.read(span.length)
    return loaded
