"""Run a model segment by segment, keeping what is alive in between: nothing runs twice.

Several streams (the original, a compressed prefix, a probe) go through the same sessions; they
differ in what is fed for weights and shifts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.errors import ModelError
from onnxrank.graph.cut import Cut, cut, submodel
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
        return self.advance(0, dict(feeds))

    def advance(self, k: int, values: Values, feeds: Feeds | None = None) -> Values:
        """Run segment `k`; return what is alive behind it.

        Parameters
        ----------
        k : int
            The segment.
        values : dict
            What was alive before; left as it is.
        feeds : mapping, optional
            Weights and shifts of this segment's sites, where they differ from the original's.
        """
        segment = self.cut.segments[k]
        session = self._session(k, bool(feeds))
        alive = {name: v for name, v in values.items() if self.cut.last.get(name, -1) > k}
        if session is None:
            return alive
        given = {name: values[name] for name in segment.reads}
        known = {i.name for i in session.get_inputs()}
        known |= {i.name for i in session.get_overridable_initializers()}
        given.update({n: v for n, v in (feeds or {}).items() if n in known})
        made = execute(session, segment.makes, given, where=self.overridden.model.name)
        return {**alive, **dict(zip(segment.makes, made, strict=True))}

    def finish(self, k: int, values: Values, feeds: Feeds | None = None) -> Values:
        """Run segments `k` to the last; return the model's outputs."""
        for later in range(k, len(self)):
            values = self.advance(later, values, feeds)
        return {o.name: values[o.name] for o in self.overridden.model.proto.graph.output}

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
                self._types[output.name] = _type(output, model.name)
            self._sessions[k, fed] = session
        return self._sessions[k, fed]


def _type(output: ort.NodeArg, where: str) -> onnx.TypeProto:
    """What onnxruntime found a tensor to be."""
    text = output.type
    kind = _TYPES.get(text.removeprefix("tensor(").removesuffix(")"))
    if not text.startswith("tensor(") or kind is None:
        raise ModelError(f"a tensor of type {text} is passed between layers", where=where)
    # An empty shape may be a scalar, or one that is not known.
    return onnx.helper.make_tensor_type_proto(kind, output.shape or None)


def size(values: Sequence[Values]) -> int:
    """Bytes that are kept alive."""
    return sum(v.nbytes for batch in values for v in batch.values() if isinstance(v, np.ndarray))
