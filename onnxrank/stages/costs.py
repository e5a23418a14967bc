"""Costs: what units cost as they are and as they could become, in the unit of a budget.

A plan promises that the written model keeps within its budget. So everything counts that a split
writes: a bias where there was none, and for bytes the names of new nodes. Where that depends on
what else is split, it is counted as if it were not shared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx

from onnxrank.errors import PlanError
from onnxrank.graph.bias import shift_parameters
from onnxrank.graph.constants import root
from onnxrank.graph.cost import counts, model_macs, parameters_of, stored_bytes
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import Model
from onnxrank.graph.sites import Site, Unit
from onnxrank.linalg.layout import Patches
from onnxrank.stages.forms import Form
from onnxrank.stages.survey import Survey

KINDS = ("params", "macs", "size")

# Bytes of the nodes and tensors that a split adds, beside the length of their names.
_NODES, _NAMES = 400, 14
# Bytes of what is written about the making of a model.
_MADE = 2048


class Costs:
    """Costs of one kind.

    Parameters
    ----------
    survey : Survey
        The model and its units.
    kind : str
        ``params``, ``macs`` or ``size``.
    rows : mapping of str to float
        Rows a sample by site, for MACs.

    Raises
    ------
    PlanError
        The kind is unknown, or the model's MACs are.
    """

    def __init__(self, survey: Survey, kind: str, rows: Mapping[str, float]) -> None:
        if kind not in KINDS:
            raise PlanError(f"unknown budget '{kind}'", hint=f"one of {', '.join(KINDS)}, latency")
        self.model, self.kind, self.rows = survey.model, kind, rows
        self.whole = self._whole(survey)
        self._added: dict[str, int] = {}

    def _whole(self, survey: Survey) -> float:
        """What the whole model costs."""
        if self.kind == "params":
            return float(parameters_of(self.model.document))
        if self.kind == "size":
            return float(stored_bytes(self.model))
        macs = model_macs(find_sites(self.model)[0], self.rows)
        if macs is None:
            raise PlanError(
                "the multiply-accumulates of this model are not known", where=self.model.name
            )
        return float(macs)

    @property
    def reserve(self) -> float:
        """What any split adds to the model."""
        return float(_MADE) if self.kind == "size" else 0.0

    def dense(self, unit: Unit) -> float:
        """Of a unit as it is."""
        site = unit.sites[0]
        if self.kind == "macs":
            return site.parameters * self._rows(unit)
        tensor = root(self.model, site.weight)
        entries = math.prod(tensor.dims)
        if self.kind == "size":
            return float(entries * _itemsize(tensor.data_type))
        return float(entries if counts(tensor) else 0)

    def cut(self, unit: Unit, form: Form, rank: int) -> float:
        """Of a unit in a form at a rank."""
        site = unit.sites[0]
        if self.kind == "macs":
            read = input_positions(self.model, site, self._rows(unit) / len(unit.sites))
            return form.macs(site, rank, read) * self._rows(unit)
        return self._stored([unit], form.parameters(site, rank))

    def shared(self, units: Sequence[Unit], rank: int) -> float:
        """Of units that read one input with a common first factor."""
        site = units[0].sites[0]
        entries = rank * (site.d_in + sum(unit.sites[0].d_out for unit in units))
        if self.kind == "macs":
            return entries * self._rows(units[0])
        return self._stored(units, entries)

    def _stored(self, units: Sequence[Unit], entries: int) -> float:
        entries += sum(self._extra(unit) for unit in units)
        if self.kind == "params":
            return float(entries)
        names = sum(_NODES + _NAMES * len(s.name) for unit in units for s in unit.sites)
        return float(entries * _itemsize(units[0].sites[0].weight.dtype) + names)

    def _extra(self, unit: Unit) -> int:
        """Entries that the split of a unit adds to its factors."""
        if unit.name not in self._added:
            # Before operator set 11 a Gemm needs a C, be it zero.
            zero = unit.sites[0].op == "Gemm" and self.model.opsets.get("", 1) < 11
            shifts = sum(shift_parameters(self.model, site) for site in unit.sites)
            self._added[unit.name] = zero + shifts
        return self._added[unit.name]

    def _rows(self, unit: Unit) -> float:
        known = [self.rows.get(site.name, site.rows) for site in unit.sites]
        return float(sum(rows or 0.0 for rows in known))


def _itemsize(dtype: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)


def input_positions(model: Model, site: Site, rows: float) -> list[float]:
    """Positions that a convolution reads for each that it makes, by axis; none for other maps.

    Parameters
    ----------
    model : Model
        Its shapes tell, where they are known.
    site : Site
        The convolution.
    rows : float
        Positions it makes of one sample.
    """
    layout = site.view.layout
    if not isinstance(layout, Patches):
        return []
    shape = model.shape(site.scope, site.view.tensor)
    spatial = [] if shape is None else [dim for dim in shape[2:] if isinstance(dim, int)]
    if len(spatial) == len(layout.kernel):
        made = layout.spatial_out(spatial)
        return [read / max(out, 1) for read, out in zip(spatial, made, strict=True)]
    # As many as can be, on axes of one length.
    length = max(rows, 1.0) ** (1 / len(layout.kernel))
    found = []
    for axis, (stride, extent) in enumerate(zip(layout.strides, layout.extents, strict=True)):
        beyond = 0.0
        if layout.auto_pad in ("NOTSET", "VALID"):
            pads = layout.pads[axis :: len(layout.kernel)] if layout.auto_pad == "NOTSET" else ()
            beyond = max(extent - 1 - sum(pads), 0)
        found.append(stride + beyond / length)
    return found
