"""The model as a document: read once, indexed, never edited."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxrank.errors import ModelError
from onnxrank.graph import external, functions
from onnxrank.graph.index import Index, Use, captured, check_graph, check_names
from onnxrank.graph.scopes import MAIN, Scope

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class TensorInfo:
    """Name, element type and declared shape of a graph input or output.

    Attributes
    ----------
    name : str
        The tensor's name.
    dtype : int
        onnx.TensorProto data type; 0 if it is no tensor.
    shape : tuple of (int, str or None), or None
        Fixed, symbolic or unknown dimensions; None if even the rank is unknown.
    optional : bool
        An initializer gives it a default.
    """

    name: str
    dtype: int
    shape: Shape | None
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """A model, its place and its fingerprint.

    Attributes
    ----------
    proto : ModelProto
        The document as given; external tensors are not loaded into it.
    path : Path or None
        File it was read from.
    folder : Path or None
        Folder that external data are relative to.
    sha256 : str
        Fingerprint of the serialized model.
    """

    proto: onnx.ModelProto
    path: Path | None
    folder: Path | None
    sha256: str
    inputs: tuple[TensorInfo, ...] = field(default=())
    outputs: tuple[TensorInfo, ...] = field(default=())

    constants: dict[bool, dict[Any, Any]] = field(
        default_factory=lambda: {False: {}, True: {}}, init=False, repr=False
    )
    """What `constants.resolve` has found, without and with overridable ones."""

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.path.name if self.path else (self.proto.graph.name or "model")

    @cached_property
    def document(self) -> onnx.ModelProto:
        """The proto whose sites are found: calls of functions that hold weights are inlined."""
        return functions.inline(self.proto)

    @cached_property
    def index(self) -> Index:
        """Index of `document`."""
        return Index(self.document)

    @cached_property
    def _shapes(self) -> dict[tuple[Scope, str], Shape]:
        from onnxrank.graph.shapes import infer

        return infer(self)

    def shape(self, scope: Scope, name: str) -> Shape | None:
        """Declared or inferred shape of a tensor, None where even its rank is unknown."""
        home = self.index.resolve(scope, name)
        return None if home is None else self._shapes.get((home, name))

    @cached_property
    def opsets(self) -> dict[str, int]:
        """Version of each imported operator set; '' is the standard one."""
        found: dict[str, int] = {}
        for entry in self.document.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            found[domain] = max(found.get(domain, 0), entry.version)
        return found


def load(
    source: str | os.PathLike[str] | onnx.ModelProto | Model, folder: Path | None = None
) -> Model:
    """Read a model without loading its external tensors, and check that it can be understood.

    Parameters
    ----------
    source : path, ModelProto or Model
        What to read; a Model is returned as it is.
    folder : Path, optional
        Where the external data of a ModelProto lie.

    Raises
    ------
    ModelError
        The file is missing, no ONNX model, truncated, or refers to data that are missing or
        outside its folder.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        proto, path, digest = source, None, _fingerprint(source)
    else:
        path = Path(source)
        proto, digest = _read(path)
        folder = external.home(proto, path)
    where = str(path) if path else "model"
    _check(proto, where)
    check_names(proto, where)
    functions.check(proto, where)
    external.check(proto, folder, where)
    model = Model(proto, path, folder, digest, _inputs(proto), _infos(proto.graph.output))
    check_graph(model.index, where)
    return model


def _read(path: Path) -> tuple[onnx.ModelProto, str]:
    hint = "give the path of an .onnx file"
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError("this is no regular file", where=str(path), hint=hint)
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError("no such file", where=str(path), hint=hint) from None
    except IsADirectoryError:
        raise ModelError("this is a folder, not a model", where=str(path), hint=hint) from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise ModelError(f"cannot be read: {error}", where=repr(str(path))) from None
    if not data:
        raise ModelError("the file is empty", where=str(path), hint="export the model again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RuntimeError, ValueError, RecursionError):
        raise ModelError(
            "not an ONNX model, or a truncated one",
            where=str(path),
            hint="export or download it again; models above 2 GB need external data",
        ) from None
    return proto, hashlib.sha256(data).hexdigest()


def _fingerprint(proto: onnx.ModelProto) -> str:
    try:
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    except (ValueError, EncodeError, RuntimeError):
        raise ModelError(
            "a ModelProto above 2 GB cannot be serialized",
            where="model",
            hint="save it with external data and give the path",
        ) from None


def _check(proto: onnx.ModelProto, where: str) -> None:
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(
            "not an ONNX model: no graph in it", where=where, hint="give an .onnx file"
        )
    if not proto.graph.output:
        raise ModelError("the graph has no outputs", where=where, hint="export the model again")
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelError(
            "no operator set is imported", where=where, hint="the file is damaged; export it again"
        )


def _inputs(proto: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    defaults = {t.name for t in proto.graph.initializer}
    defaults |= {t.values.name for t in proto.graph.sparse_initializer}
    infos = _infos(proto.graph.input)
    return tuple(
        TensorInfo(i.name, i.dtype, i.shape, True) if i.name in defaults else i for i in infos
    )


def _infos(values: object) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(v.name, v.type.tensor_type.elem_type, declared_shape(v))
        for v in values  # type: ignore[attr-defined]
    )


def declared_shape(value: onnx.ValueInfoProto) -> Shape | None:
    """The dimensions a ValueInfoProto states, or None."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    # Some exporters wrote -1 where they knew nothing.
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None)
        for d in tensor.shape.dim
    )


__all__ = [
    "MAIN",
    "Index",
    "Model",
    "TensorInfo",
    "Use",
    "captured",
    "declared_shape",
    "load",
]
