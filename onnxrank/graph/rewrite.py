"""Write factors into a model: edits from the operators, spliced into the original."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.errors import ModelError
from onnxrank.graph import operators
from onnxrank.graph.edit import Edit, splice
from onnxrank.graph.index import named_elsewhere
from onnxrank.graph.model import Model
from onnxrank.graph.nodes import Namer, make_tensor
from onnxrank.graph.operators.base import Job
from onnxrank.graph.scopes import Scope, node_key, walk
from onnxrank.graph.sites import Site
from onnxrank.graph.weights import to_type
from onnxrank.linalg.factorize import Factors


@dataclass
class Store:
    """New constants; equal ones are stored once, so sites of one weight share their factors."""

    model: Model
    names: Namer
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _known: dict[bytes, str] = field(default_factory=dict)
    _made: dict[tuple[Scope, bytes], str] = field(default_factory=dict)

    def __call__(self, wish: str, value: NDArray[Any], site: Site) -> str:
        """Name of the constant `value`, in the type of the site's weight."""
        where = f"{self.model.name}: node '{site.name}'"
        tensor = make_tensor("", to_type(np.ascontiguousarray(value), site.weight.dtype, where))
        digest = hashlib.sha256(tensor.SerializeToString(deterministic=True)).digest()
        if digest not in self._known:
            tensor.name = self.names(wish)
            self._known[digest] = tensor.name
            self.tensors[tensor.name] = tensor
        return self._known[digest]

    def reuse(self, scope: Scope, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Leave out a first node that computes what an earlier one of the scope does."""
        first = onnx.NodeProto()
        first.CopyFrom(nodes[0])
        first.ClearField("name")
        first.ClearField("output")
        key = scope, first.SerializeToString(deterministic=True)
        made = nodes[0].output[0]
        known = self._made.setdefault(key, made)
        if known == made:
            return nodes
        for node in nodes[1:]:
            for index, name in enumerate(node.input):
                if name == made:
                    node.input[index] = known
        return nodes[1:]

    def drain(self) -> Iterator[onnx.TensorProto]:
        """Hand the tensors out one by one, keeping none."""
        for name in list(self.tensors):
            yield self.tensors.pop(name)


def rewrite(
    model: Model,
    pairs: Iterable[tuple[Site, Factors]],
    properties: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A model with some sites split, or refitted; everything else is the same message as before.

    Parameters
    ----------
    model : Model
        The original, left untouched.
    pairs : iterable of (Site, Factors)
        The sites with their factors, float64: a pair of shapes (groups, d_in, r) and
        (groups, r, d_out) splits the node, one part of the weight's own shape takes its place.
        In the order of the graph: sites that share a first factor share its node. Taken one at a
        time, so that they need not all be in memory.
    properties : mapping of str to str, optional
        Entries of metadata_props to add; an entry of the same key is replaced.

    Raises
    ------
    ModelError
        A site cannot be split, or its factors do not fit the model's type.
    """
    store = Store(model, Namer(names_of(model.document, model.proto)))
    edits: list[Edit] = []
    for site, factors in pairs:
        edits += _edits(model, site, factors, store)
    result = splice(_document(model, edits), edits, store.drain())
    _set_properties(result, properties or {})
    return result


def _document(model: Model, edits: list[Edit]) -> onnx.ModelProto:
    """The original, unless an edit lies in a function: then its calls are inlined."""
    if model.document is model.proto:
        return model.proto
    # A call bears the name of its output, as the last node of what it calls does once inlined.
    made = {
        (scope, node_key(node)): (node.domain, node.op_type)
        for scope, graph in walk(model.proto.graph)
        for node in graph.node
    }
    for edit in edits:
        node = model.index.producers[edit.scope][edit.node]
        if made.get((edit.scope, edit.node)) != (node.domain, node.op_type):
            return model.document
    return model.proto


def _edits(model: Model, site: Site, factors: Factors, store: Store) -> list[Edit]:
    if site.hold:
        raise ModelError(
            f"cannot be split: {site.hold.reason}", where=f"{model.name}: node '{site.name}'"
        )
    if factors.bias is not None and not site.centers:
        raise ModelError(
            "cannot hold a shift of its outputs", where=f"{model.name}: node '{site.name}'"
        )
    node = model.index.producers[site.scope][site.output]
    operator = operators.operator(node)
    assert operator is not None
    first, second = factors.parts[0], factors.parts[-1]
    job = Job(model, site, node, first, second, factors.bias, store, store.names)
    if len(factors.parts) > 1:
        nodes = store.reuse(site.scope, operator.split(job))
    elif operator.refit is not None:
        nodes = operator.refit(job)
    else:
        raise ModelError(
            "cannot take another weight in place", where=f"{model.name}: node '{site.name}'"
        )
    replacing = Edit(site.scope, site.output, tuple(nodes))
    return [replacing, *(Edit(site.scope, key, (n,)) for key, n in job.others.items())]


def names_of(*protos: onnx.ModelProto) -> set[str]:
    """Every name of a tensor or node in any scope, and of what describes one."""
    names: set[str] = set()
    for proto in protos:
        for _, graph in walk(proto.graph):
            for values in (graph.input, graph.output, graph.value_info, graph.initializer):
                names.update(value.name for value in values)
            names.update(t.values.name for t in graph.sparse_initializer)
            for node in graph.node:
                names.add(node.name)
                names.update(node.input)
                names.update(node.output)
        names |= named_elsewhere(proto)
    return names


def _set_properties(proto: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    present = {entry.key: entry for entry in proto.metadata_props}
    for key, value in properties.items():
        if key in present:
            present[key].value = value
        else:
            proto.metadata_props.add(key=key, value=value)
