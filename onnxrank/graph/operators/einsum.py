"""Einsum of two operands, one of them constant, contracted over letters that both have."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph.attributes import attributes
from onnxrank.graph.constants import WeightRef
from onnxrank.graph.model import Model, Shape
from onnxrank.graph.operators.base import Context, Job, row_count
from onnxrank.graph.sites import Orientation, Site, Skip
from onnxrank.linalg.layout import Axis

_DOTS = "."  # stands for an ellipsis, as one letter
_LETTERS = set(string.ascii_letters + _DOTS + ",")


@dataclass(frozen=True)
class Terms:
    """An equation taken apart: letters of the data, the weight and the result."""

    data: str
    weight: str
    result: str

    @property
    def contracted(self) -> str:
        """Letters summed over, in the weight's order."""
        return "".join(c for c in self.weight if c in self.data)

    @property
    def made(self) -> str:
        """Letters that only the weight has, in its order."""
        return "".join(c for c in self.weight if c not in self.data)


def parse(equation: str, constant: int) -> Terms | str:
    """Terms of an equation whose operand `constant` is the weight, or why it is no linear map."""
    text = equation.replace(" ", "").replace("...", _DOTS)
    left, arrow, result = text.partition("->")
    operands = left.split(",")
    if len(operands) != 2:
        return f"it has {len(operands)} operands, not 2"
    if "." in equation.replace("...", "") or not set(left + result) <= _LETTERS:
        return "its equation is none"
    if not arrow:
        letters = sorted(c for c in set(left) - {","} if left.count(c) == 1 or c == _DOTS)
        result = "".join(letters)
    weight, data = operands[constant], operands[1 - constant]
    terms = Terms(data, weight, result)
    if any(len(set(t)) < len(t) for t in (data, weight, result)):
        return "a letter repeats within an operand"
    if _DOTS in weight:
        return "its weight has an ellipsis"
    if any(c in result for c in terms.contracted):
        return "it multiplies batch by batch, not one matrix"
    if not terms.contracted or not terms.made:
        return "it contracts nothing with the weight, or makes no new axis"
    if set(terms.made) - set(result) or set(data) - set(terms.contracted) - set(result):
        return "it sums over an axis of one operand alone"
    if set(result) - set(data + weight):
        return "its result has a letter that no operand has"
    if len(set(string.ascii_letters) - set(data + weight)) == 0:
        return "no letter is left for the rank"
    if _DOTS in result and any(c in terms.made for c in result[: result.index(_DOTS)]):
        return "new axes stand before an ellipsis"
    return terms


def _axes(letters: str, within: str) -> tuple[int, ...]:
    """Positions of `letters`; behind an ellipsis they count from the end."""
    dots = within.find(_DOTS)
    return tuple(
        p - len(within) if 0 <= dots < (p := within.index(c)) else within.index(c) for c in letters
    )


def _terms(context_attributes: dict[str, object], constant: int) -> Terms | str:
    return parse(str(context_attributes.get("equation", "")), constant)


def recognise(context: Context) -> Site | Skip | None:
    """A site where the equation is one matrix product with the constant."""
    constants = [context.constant(k) for k in range(len(context.node.input))]
    found = [k for k, c in enumerate(constants) if isinstance(c, WeightRef)]
    if not found:
        return context.no_weight(*[c for c in constants if not isinstance(c, WeightRef)])
    weight = constants[found[0]]
    assert isinstance(weight, WeightRef)
    size = math.prod(weight.shape)
    if len(found) == len(constants):
        return context.skip("constant_result", "all operands are constant", size)
    terms = _terms(context.attributes, found[0])
    if isinstance(terms, str):
        return context.skip("einsum", terms, size)
    if len(terms.weight) != len(weight.shape):
        return context.skip("einsum", "its equation does not fit its weight", size)
    dims = dict(zip(terms.weight, weight.shape, strict=True))
    d_in = math.prod(dims[c] for c in terms.contracted)
    d_out = math.prod(dims[c] for c in terms.made)
    tensor = context.node.input[1 - found[0]]
    axes = _axes(terms.contracted, terms.data)
    if _stretched(context.shape(tensor), axes, [dims[c] for c in terms.contracted]):
        return context.skip("shape", "an axis of its input is broadcast along its weight", size)
    return context.site(
        weight,
        tensor,
        Axis(axes),
        Orientation(
            weight.shape, tuple(terms.weight.index(c) for c in terms.contracted + terms.made)
        ),
        (1, d_in, d_out),
        rows=row_count(context.shape(tensor), axes),
    )


def _stretched(shape: Shape | None, axes: tuple[int, ...], wanted: list[int]) -> bool:
    """Whether a contracted axis has one entry, which the equation would repeat."""
    if shape is None:
        return False
    found = [shape[axis] if -len(shape) <= axis < len(shape) else None for axis in axes]
    return any(a == 1 != b for a, b in zip(found, wanted, strict=True))


def split(job: Job) -> list[onnx.NodeProto]:
    """Two Einsums with a new letter for the rank between them."""
    constant = 0 if job.site.view.tensor == job.input(1) else 1
    terms = _terms(job.attributes, constant)
    assert isinstance(terms, Terms)
    dims = dict(zip(terms.weight, job.site.weight.shape, strict=True))
    used = set(terms.data + terms.weight + terms.result)
    new = next(c for c in string.ascii_letters if c not in used)
    a = job.first[0].reshape([dims[c] for c in terms.contracted] + [job.rank])
    b = job.second[0].reshape([job.rank] + [dims[c] for c in terms.made])
    kept = "".join(c for c in terms.data if c not in terms.contracted) + new
    shift = None if job.shift is None else spread(job.model, job.site, job.node, job.shift)
    inner = f"{terms.data},{terms.contracted}{new}->{kept}".replace(_DOTS, "...")
    outer = f"{kept},{new}{terms.made}->{terms.result}".replace(_DOTS, "...")
    first, second = job.constant("rank_in.weight", a), job.constant("rank_out.weight", b)
    data, produced = job.site.view.tensor, job.finish(shift)
    job.add("rank_in", "Einsum", [data, first], job.middle, extra={"equation": inner})
    job.add("rank_out", "Einsum", [job.middle, second], produced, extra={"equation": outer})
    return job.close(produced, shift)


def spread(
    model: Model, site: Site, node: onnx.NodeProto, shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A shift of the map, shape (1, d_out), with the result's axes: ones where the data's stand."""
    terms = _terms(attributes(node), 0 if site.view.tensor == node.input[1] else 1)
    assert isinstance(terms, Terms)
    dims = dict(zip(terms.weight, site.weight.shape, strict=True))
    order = [c for c in terms.result if c in terms.made]
    value = shift[0].reshape([dims[c] for c in terms.made])
    value = value.transpose([terms.made.index(c) for c in order])
    first = terms.result.index(order[0])
    return np.asarray(
        value.reshape([dims[c] if c in terms.made else 1 for c in terms.result[first:]]), np.float64
    )
