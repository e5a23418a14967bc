"""Blocks: units cut together. One alone, or several that read one input and share a factor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxrank.graph.model import Model
from onnxrank.graph.scopes import MAIN
from onnxrank.graph.sites import Site, Unit, View
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.factorize import Factors
from onnxrank.linalg.gram import Array


@dataclass(frozen=True)
class Block:
    """Units whose weights are factored as one, side by side.

    Attributes
    ----------
    units : tuple of Unit
        More than one only if all read the same input.
    scales : tuple of float
        What each weight is multiplied with before, so that the common first factor serves those
        most whose errors weigh most.
    """

    units: tuple[Unit, ...]
    scales: tuple[float, ...]

    @classmethod
    def of(cls, unit: Unit) -> Block:
        """One unit alone."""
        return cls((unit,), (1.0,))

    @property
    def name(self) -> str:
        """The name of the first unit."""
        return self.units[0].name

    @property
    def site(self) -> Site:
        """The first site: it tells what all read."""
        return self.units[0].sites[0]

    def weight(self, model: Model) -> Array:
        """All weights side by side, scaled; shape (groups, d_in, sum of d_out)."""
        parts = [
            scale * weight_matrix(model, unit.sites[0])
            for unit, scale in zip(self.units, self.scales, strict=True)
        ]
        return np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]

    def split(self, factors: Factors) -> dict[str, Factors]:
        """The factors of each unit, by name; the first factor is the same array."""
        if len(self.units) == 1:
            return {self.name: factors}
        first, second = factors.parts
        found, start = {}, 0
        for unit, scale in zip(self.units, self.scales, strict=True):
            end = start + unit.sites[0].d_out
            bias = None if factors.bias is None else factors.bias[:, start:end] / scale
            found[unit.name] = Factors((first, second[:, :, start:end] / scale), bias)
            start = end
        return found


def sharing(units: Sequence[Unit]) -> list[tuple[Unit, ...]]:
    """Units that could share their first factor: matrix products of one input, each used once."""
    groups: dict[View, list[Unit]] = defaultdict(list)
    for unit in units:
        site = unit.sites[0]
        alone = len(unit.sites) == 1 and site.scope == MAIN and site.groups == 1
        if alone and site.op in ("MatMul", "Gemm") and site.operand == 1 and site.centers:
            groups[site.view].append(unit)
    return [tuple(members) for members in groups.values() if len(members) > 1]
