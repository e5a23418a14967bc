"""What is found in a model: views, sites, skips and units. Data only, no arrays."""

from __future__ import annotations

from dataclasses import dataclass

from onnxrank.graph.constants import WeightRef
from onnxrank.graph.scopes import Scope
from onnxrank.linalg.layout import Layout


@dataclass(frozen=True)
class View:
    """One distinct input of linear maps: a tensor and how it becomes rows.

    Sites with equal views share one second-moment matrix.
    """

    scope: Scope
    tensor: str
    layout: Layout


@dataclass(frozen=True)
class Orientation:
    """How a weight tensor becomes matrices ``(groups, d_in, d_out)``.

    ``weight.reshape(shape).transpose(perm).reshape(groups, d_in, d_out)``.
    """

    shape: tuple[int, ...]
    perm: tuple[int, ...]


@dataclass(frozen=True)
class Hold:
    """Why a site is analyzed but not split."""

    code: str
    reason: str


@dataclass(frozen=True)
class Site:
    """One constant-weight linear map ``y = x W + b``.

    Attributes
    ----------
    name : str
        The node's name, or its first output where the name is empty or repeated; unique.
    op : str
        Operator, with its domain unless that is the standard one.
    scope : Scope
        The graph that holds the node.
    output : str
        First output of the node, its identity within the scope.
    view : View
        The input of the map.
    weight : WeightRef
        The constant weight.
    orientation : Orientation
        How the weight tensor becomes ``(groups, d_in, d_out)``.
    d_in, d_out, groups : int
        Sizes of one group's matrix, and how many groups there are.
    operand : int
        Which input of the node the weight is.
    centers : bool
        A shift of the output by a constant can be written, so the centred form is possible.
    hold : Hold or None
        Why the site is only analyzed; None if it can be split.
    rows : int or None
        Rows one sample gives, where the model states its shapes.
    """

    name: str
    op: str
    scope: Scope
    output: str
    view: View
    weight: WeightRef
    orientation: Orientation
    d_in: int
    d_out: int
    groups: int = 1
    operand: int = 1
    centers: bool = True
    hold: Hold | None = None
    rows: int | None = None

    @property
    def parameters(self) -> int:
        """Entries of the dense weight."""
        return self.groups * self.d_in * self.d_out

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution, whose kernels like ranks of round numbers."""
        return "Conv" in self.op

    @property
    def full_rank(self) -> int:
        """Largest rank of one group's matrix."""
        return min(self.d_in, self.d_out)


@dataclass(frozen=True)
class Skip:
    """A weight-bearing node that is no site, with the reason."""

    name: str
    op: str
    scope: Scope
    parameters: int
    code: str
    reason: str


@dataclass(frozen=True)
class Unit:
    """What a plan decides at once: today one weight with every site that uses it."""

    name: str
    kind: str
    sites: tuple[Site, ...]
    tied: bool = False
    """The dense weight has users that are no sites, so splitting frees nothing."""


@dataclass(frozen=True)
class Selection:
    """Which sites a user wants: glob patterns on site names; what may be split on request.

    Attributes
    ----------
    include, exclude : tuple of str
        Patterns (fnmatch). No include pattern means all.
    quantized : bool
        Split weights that come out of DequantizeLinear into float factors.
    overridable : bool
        Treat initializers that are also graph inputs (IR 4 and later) as constant.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    quantized: bool = False
    overridable: bool = False
