"""Run a model segment by segment, keeping what is alive in between: nothing runs twice.

Several streams (the original, a compressed prefix, a probe) go through the same sessions; they
differ in what is fed for weights and shifts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.errors import ModelError
from onnxrank.graph.constants import to_array
from onnxrank.graph.cut import Cut, cut, inputs_of, submodel
from onnxrank.graph.override import Overridden
from onnxrank.runtime.session import Run, execute, open_session

if TYPE_CHECKING:
    import onnxruntime as ort

Values = dict[str, Any]
Feeds = Mapping[str, NDArray[Any]]

_TYPES = {
    "float": onnx.TensorProto.FLOAT,
    "double": onnx.TensorProto.DOUBLE,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "bool": onnx.TensorProto.BOOL,
    "string": onnx.TensorProto.STRING,
    **{
        f"{sign}int{bits}": getattr(onnx.TensorProto, f"{sign}int{bits}".upper())
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


class Replay:
    """Sessions of the segments of one model, opened when first needed.

    Attributes
    ----------
    cut : Cut
        The segments.
    """

    def __init__(self, overridden: Overridden, run: Run) -> None:
        self.overridden = overridden
        self.cut: Cut = cut(overridden)
        self._run = run
        self._sessions: dict[tuple[int, bool], ort.InferenceSession | None] = {}
        graph = overridden.proto.graph
        self._types: dict[str, onnx.TypeProto] = {v.name: v.type for v in graph.input}

    def __len__(self) -> int:
        return len(self.cut.segments)

    def start(self, feeds: Mapping[str, Any]) -> Values:
        """Run what comes before the first site on one batch."""
        return self.advance(0, {**self._defaults, **feeds})

    @cached_property
    def _defaults(self) -> dict[str, NDArray[Any]]:
        """Values of the inputs that a caller may leave out."""
        model = self.overridden.model
        wanted = {info.name for info in inputs_of(self.overridden) if info.optional}
        return {
            t.name: to_array(model, t) for t in model.proto.graph.initializer if t.name in wanted
        }

    def advance(self, k: int, values: Values, feeds: Feeds | None = None) -> Values:
        """Run segment `k`; return what is alive behind it.

        Parameters
        ----------
        k : int
            The segment.
        values : dict
            What was alive before; left as it is.
        feeds : mapping, optional
            Weights and shifts where they differ from the original's; those of other segments are
            left aside.
        """
        segment = self.cut.segments[k]
        own = {name: value for name, value in (feeds or {}).items() if name in segment.takes}
        session = self._session(k, bool(own))
        alive = {name: v for name, v in values.items() if self.cut.last.get(name, -1) > k}
        if session is None:
            return alive
        given = {name: values[name] for name in segment.reads}
        given.update(own)
        made = execute(session, segment.makes, given, where=self.overridden.model.name)
        return {**alive, **dict(zip(segment.makes, made, strict=True))}

    def finish(self, k: int, values: Values, feeds: Feeds | None = None) -> Values:
        """Run segments `k` to the last; return the model's outputs, but for constant ones."""
        for later in range(k, len(self)):
            values = self.advance(later, values, feeds)
        names = [o.name for o in self.overridden.model.proto.graph.output]
        return {name: values[name] for name in names if name in values}

    def _session(self, k: int, fed: bool) -> ort.InferenceSession | None:
        """Constant weights run faster (they are packed ahead), so inputs are made only if fed."""
        if (k, fed) not in self._sessions:
            segment = self.cut.segments[k]
            if not segment.makes:
                return None
            proto = submodel(self.overridden, segment, self._types, fed=fed)
            model = self.overridden.model
            session = open_session(proto, model.folder, self._run, name=model.name, lean=True)
            for output in session.get_outputs():
                self._types[output.name] = _type(output.type, output.shape, model.name)
            self._sessions[k, fed] = session
        return self._sessions[k, fed]


def _type(text: str, shape: Sequence[int | str | None] | None, where: str) -> onnx.TypeProto:
    """What onnxruntime found a value to be: tensor(float), seq(map(int64,tensor(float))), ..."""
    outer, _, inner = text.partition("(")
    inner = inner.removesuffix(")")
    if outer == "tensor" and inner in _TYPES:
        # An empty shape may be a scalar, or one that is not known.
        return onnx.helper.make_tensor_type_proto(_TYPES[inner], shape or None)
    if outer == "seq":
        return onnx.helper.make_sequence_type_proto(_type(inner, None, where))
    if outer == "optional":
        return onnx.helper.make_optional_type_proto(_type(inner, None, where))
    key, comma, value = inner.partition(",")
    if outer == "map" and comma and key in _TYPES:
        return onnx.helper.make_map_type_proto(_TYPES[key], _type(value, None, where))
    raise ModelError(f"a value of type {text} is passed between layers", where=where)


def size(values: Sequence[Values]) -> int:
    """Bytes that are kept alive."""
    return sum(v.nbytes for batch in values for v in batch.values() if isinstance(v, np.ndarray))
