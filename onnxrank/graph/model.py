"""The model as a document: read once, indexed, never edited."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxrank.errors import ModelError
from onnxrank.graph import external, functions
from onnxrank.graph.scopes import MAIN, Scope, node_key, walk

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


@dataclass(frozen=True)
class Use:
    """One reading of a tensor: by input `index` of `node`, or by a graph output (node None)."""

    scope: Scope
    node: onnx.NodeProto | None
    index: int


class Index:
    """Who makes and who reads each tensor, in every scope of a document."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graphs: dict[Scope, onnx.GraphProto] = dict(walk(proto.graph))
        self.producers: dict[Scope, dict[str, onnx.NodeProto]] = {}
        self.initializers: dict[Scope, dict[str, onnx.TensorProto]] = {}
        self.sparse: dict[Scope, set[str]] = {}
        self.inputs: dict[Scope, dict[str, int]] = {}
        self._uses: dict[tuple[Scope, str], list[Use]] = defaultdict(list)
        for scope, graph in self.graphs.items():
            self.producers[scope] = {o: n for n in graph.node for o in n.output if o}
            self.initializers[scope] = {t.name: t for t in graph.initializer}
            self.sparse[scope] = {t.values.name for t in graph.sparse_initializer}
            self.inputs[scope] = {v.name: k for k, v in enumerate(graph.input)}
        for scope, graph in self.graphs.items():
            for name, use in _readings(scope, graph):
                home = self.resolve(scope, name)
                if home is not None:
                    self._uses[home, name].append(use)

    def resolve(self, scope: Scope, name: str) -> Scope | None:
        """The scope that defines the tensor `name` as seen from `scope`, or None."""
        while True:
            if (
                name in self.producers[scope]
                or name in self.initializers[scope]
                or name in self.inputs[scope]
                or name in self.sparse[scope]
            ):
                return scope
            if not scope.path:
                return None
            scope = scope.parent

    def uses(self, home: Scope, name: str) -> list[Use]:
        """Every reading of the tensor that `home` defines as `name`."""
        return self._uses.get((home, name), [])

    def nodes(self) -> Iterator[tuple[Scope, onnx.NodeProto]]:
        """Every node of every scope."""
        for scope, graph in self.graphs.items():
            for node in graph.node:
                yield scope, node


def _readings(scope: Scope, graph: onnx.GraphProto) -> Iterator[tuple[str, Use]]:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name:
                yield name, Use(scope, node, index)
    for index, output in enumerate(graph.output):
        yield output.name, Use(scope, None, index)


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

        return infer(self.document)

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
        folder = path.resolve().parent
        proto, digest = _read(path)
    where = str(path) if path else "model"
    _check(proto, where)
    external.check(proto, folder, where)
    model = Model(proto, path, folder, digest, _inputs(proto), _infos(proto.graph.output))
    _check_graph(model, where)
    return model


def _read(path: Path) -> tuple[onnx.ModelProto, str]:
    hint = "give the path of an .onnx file"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError("no such file", where=str(path), hint=hint) from None
    except IsADirectoryError:
        raise ModelError("this is a folder, not a model", where=str(path), hint=hint) from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None
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


def _check_graph(model: Model, where: str) -> None:
    """Refuse tensors that nobody makes, tensors made twice, and cycles."""
    index = model.index
    for scope, graph in index.graphs.items():
        made: set[str] = {v.name for v in graph.input}
        for node in graph.node:
            for name in node.output:
                if name and name in made:
                    raise ModelError(
                        f"tensor '{name}' is made twice", where=f"{where}: {scope}", hint=_AGAIN
                    )
                made.add(name)
            for name in node.input:
                if name and index.resolve(scope, name) is None:
                    raise ModelError(
                        f"node '{node.name or node_key(node)}' reads tensor '{name}', "
                        "which nothing makes",
                        where=f"{where}: {scope}",
                        hint=_AGAIN,
                    )
        for output in graph.output:
            if index.resolve(scope, output.name) is None:
                raise ModelError(
                    f"output '{output.name}' is made by nothing",
                    where=f"{where}: {scope}",
                    hint=_AGAIN,
                )
        _refuse_cycles(scope, graph, index, where)


_AGAIN = "the graph is damaged; export the model again"


def _refuse_cycles(scope: Scope, graph: onnx.GraphProto, index: Index, where: str) -> None:
    producers = index.producers[scope]
    waiting: dict[str, int] = {}
    readers: dict[str, list[str]] = defaultdict(list)
    for node in graph.node:
        key = node_key(node)
        if not key:
            continue
        sources = {node_key(producers[n]) for n in captured(node) if n in producers}
        waiting[key] = len(sources)
        for source in sources:
            readers[source].append(key)
    ready = [key for key, count in waiting.items() if not count]
    done = 0
    while ready:
        key = ready.pop()
        done += 1
        for reader in readers[key]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if done < len(waiting):
        stuck = next(key for key, count in waiting.items() if count)
        raise ModelError(
            f"the nodes form a cycle through '{stuck}'", where=f"{where}: {scope}", hint=_AGAIN
        )


def captured(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, those that its bodies take from outside included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for body in graphs:
            for _, graph in walk(body):
                own = {o for n in graph.node for o in n.output}
                own |= {v.name for v in graph.input} | {t.name for t in graph.initializer}
                for inner in graph.node:
                    names |= {name for name in inner.input if name and name not in own}
                names |= {v.name for v in graph.output if v.name not in own}
    return names


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
    return tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim
    )


__all__ = ["MAIN", "Index", "Model", "TensorInfo", "Use", "declared_shape", "load"]
