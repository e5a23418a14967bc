"""What the stages answer: reports, plans and comparisons."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from onnxrank.record import Record

if TYPE_CHECKING:
    import pandas

Setting = str | int | float | bool | None | list[str]


@dataclass(frozen=True)
class ModelInfo(Record):
    """The model that was measured.

    Attributes
    ----------
    path : str or None
        File it was read from; None for a ModelProto.
    sha256, producer : str
    opset : int or None
        Version of the standard operator set.
    parameters, bytes : int
    macs : int or None
        Multiply-accumulates of all linear maps, a sample; None where shapes are unknown.
    """

    path: str | None
    sha256: str
    producer: str
    opset: int | None
    parameters: int
    bytes: int
    macs: int | None


@dataclass(frozen=True)
class DataReport(Record):
    """The data it was measured on; `rows` is the largest number seen by any site, if it counted."""

    source: str
    samples: int
    rows: int | None
    provider: str
    seconds: float
    meaningless: bool = False


@dataclass(frozen=True)
class SiteReport(Record):
    """One linear map; ranks are None until data were seen.

    Attributes
    ----------
    name, op, weight, scope : str
    d_in, d_out, groups : int
        Sizes of one group's matrix, and the number of groups.
    factorizable : bool
        The node can be rewritten; if not, `reason` says why.
    rows : int or None
        Rows that this site saw; `rows_per_dimension` divides them by d_in.
    k_in, k_out, rank, rank_corrected : int or None
        Directions that hold the energy on either side, the smaller of the two, and that one
        corrected for the number of rows.
    utilization : float or None
        ``rank / min(d_in, d_out)``.
    energy : float or None
    parameters, macs : int or None
        Of the dense weight; macs a sample.
    factorized_parameters : int or None
        Of a factor pair at `rank`; `worthwhile` if they are fewer.
    rank_stable : bool or None
        The ranks of the two folds differ little from the rank of the whole.
    rows_wanted : int or None
        About how many more rows the rank needs to settle; 0 if it has.
    criteria : mapping of str to float
        Other measures of rank (numerical, entropy, stable), the smaller of both sides.
    spectrum_in, spectrum_out : tuple of (int, float)
        Number of a direction, from 1, and its share of the energy: the few points that draw the
        whole curve on a logarithmic axis.
    """

    name: str
    op: str
    weight: str
    scope: str
    d_in: int
    d_out: int
    groups: int
    factorizable: bool
    reason: str | None
    parameters: int
    macs: int | None
    rows: int | None = None
    rows_per_dimension: float | None = None
    k_in: int | None = None
    k_out: int | None = None
    rank: int | None = None
    rank_corrected: int | None = None
    utilization: float | None = None
    energy: float | None = None
    factorized_parameters: int | None = None
    worthwhile: bool | None = None
    rank_stable: bool | None = None
    rows_wanted: int | None = None
    criteria: Mapping[str, float] = field(default_factory=dict)
    spectrum_in: tuple[tuple[float, ...], ...] = ()
    spectrum_out: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class UnitReport(Record):
    """What a plan decides at once: `used` of `size` dimensions hold the energy."""

    name: str
    kind: str
    sites: tuple[str, ...]
    size: int
    used: int | None
    utilization: float | None


@dataclass(frozen=True)
class SkipReport(Record):
    """A weight-bearing node that is no site, with the reason."""

    name: str
    op: str
    scope: str
    parameters: int
    code: str
    reason: str


# Form of a unit that stays dense, with a weight that is fitted anew.
REFIT = "refit"


@dataclass(frozen=True)
class PlanEntry(Record):
    """What is done with one unit: a form and a rank, or the reason why it is kept dense.

    Attributes
    ----------
    name, kind : str
    sites : tuple of str
    form : str or None
        Name of a factor form; None if the unit is kept. ``refit``: its dense weight may be fitted
        anew to what the compressed layers before it give.
    rank : int or None
    k_in, k_out : int or None
        Ranks of the two sides, which the form ``projection`` needs.
    kept : str or None
        Why the unit stays as it is; None if it is split.
    parameters, factorized_parameters : int
        Of the dense weight, and after the plan.
    expected_relative_error : float or None
        Of the unit's output on the calibration rows, in the Frobenius norm.
    sensitivity : float or None
        How much that error weighs at the model's outputs, where it was probed.
    shares : tuple of str
        The units that have their first factor in common, for the form ``shared``.
    scale : float
        Of its weight when that factor is fitted.
    """

    name: str
    kind: str
    sites: tuple[str, ...]
    form: str | None
    rank: int | None
    kept: str | None
    parameters: int
    factorized_parameters: int
    k_in: int | None = None
    k_out: int | None = None
    expected_relative_error: float | None = None
    sensitivity: float | None = None
    shares: tuple[str, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True)
class Plan(Record):
    """Form and rank of every unit of one model; data that can be saved, edited and applied.

    Attributes
    ----------
    model_sha256 : str
    settings : mapping
        What it was asked for.
    mean_layer_utilization : float or None
    units : tuple of PlanEntry
    predicted_error : float or None
        Squared error of the outputs over their squared norm, as the curves add up; for budgets.
    bound : float or None
        No plan within the budget has a predicted error below this.
    """

    SCHEMA: ClassVar[str] = "onnxrank.plan/1"

    model_sha256: str
    settings: Mapping[str, Setting]
    mean_layer_utilization: float | None
    units: tuple[PlanEntry, ...]
    predicted_error: float | None = None
    bound: float | None = None

    @property
    def split(self) -> tuple[PlanEntry, ...]:
        """The entries that are split; not those whose dense weight is fitted anew."""
        return tuple(entry for entry in self.units if entry.form not in (None, REFIT))


@dataclass(frozen=True)
class Pair(Record):
    """One figure of the original and of the candidate; `ratio` is candidate over original."""

    original: float | None
    candidate: float | None
    ratio: float | None

    @staticmethod
    def of(original: float | None, candidate: float | None) -> Pair:
        """A pair with its ratio; None where that is undefined."""
        if original is None or candidate is None or original == 0:
            return Pair(original, candidate, None)
        return Pair(original, candidate, candidate / original)


@dataclass(frozen=True)
class OutputError(Record):
    """How far one output of the candidate is from the original's."""

    max_abs: float | None
    relative_l2: float | None
    cosine: float | None
    sqnr_db: float | None


@dataclass(frozen=True)
class Comparison(Record):
    """Original and candidate on the same data.

    Attributes
    ----------
    data : DataReport
        What both were run on.
    outputs : mapping of str to OutputError
        By output name.
    skipped_outputs : mapping of str to str
        Outputs that cannot be compared, with the reason.
    top1_agreement : float or None
        Share of samples with the same top class, for classifiers.
    accuracy : Pair or None
        Where the data hold labels.
    parameters, macs, bytes : Pair
        Multiply-accumulates of the linear maps, a sample.
    latency_ms : Pair
        Of one step of `latency_samples` samples; the ratio is the median over rounds.
    """

    SCHEMA: ClassVar[str] = "onnxrank.comparison/1"

    data: DataReport
    outputs: Mapping[str, OutputError]
    top1_agreement: float | None
    accuracy: Pair | None
    parameters: Pair
    macs: Pair
    bytes: Pair
    latency_ms: Pair
    latency_samples: int | None = None
    skipped_outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FrontierPoint(Record):
    """One plan that was looked at: what it keeps, and what it costs at the outputs.

    Attributes
    ----------
    size : float
        Kept share of the whole model.
    predicted, measured : float or None
        Error as a share, from the curves of the units and from a run.
    chosen : bool
        The plan that was taken.
    label : str
        What sets it apart, for example its energy.
    """

    size: float
    predicted: float | None = None
    measured: float | None = None
    chosen: bool = False
    label: str = ""


@dataclass(frozen=True)
class Frontier(Record):
    """Size against error over many plans.

    Attributes
    ----------
    size, error : str
        What the points' sizes, and their measured errors, are measured in.
    points : tuple of FrontierPoint
    limit : float or None
        Largest measured error that was allowed.
    predicted : str
        What predicted errors are measured in, if not in the same.
    """

    size: str
    error: str
    points: tuple[FrontierPoint, ...]
    limit: float | None = None
    predicted: str = ""


@dataclass(frozen=True)
class Report(Record):
    """Everything that is known about one model."""

    SCHEMA: ClassVar[str] = "onnxrank.report/1"

    model: ModelInfo
    data: DataReport | None
    settings: Mapping[str, Setting]
    mean_layer_utilization: float | None
    mean_layer_utilization_corrected: float | None
    sites: tuple[SiteReport, ...]
    units: tuple[UnitReport, ...]
    skipped: tuple[SkipReport, ...]
    plan: Plan | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = field(default=())
    frontier: Frontier | None = None

    def to_csv(self) -> str:
        """The sites as comma-separated values with a header."""
        rows = self._rows()
        text = io.StringIO()
        columns = rows[0] if rows else [item.name for item in dataclasses.fields(SiteReport)]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_dataframe(self) -> pandas.DataFrame:
        """The sites as a pandas DataFrame, one row each; needs pandas."""
        import pandas

        return pandas.DataFrame(self._rows())

    def _rows(self) -> list[dict[str, object]]:
        """The sites as flat dictionaries with equal keys."""
        names = sorted({name for site in self.sites for name in site.criteria})
        rows = []
        for site in self.sites:
            row = site.to_dict()
            criteria = row.pop("criteria")
            del row["spectrum_in"], row["spectrum_out"]
            rows.append({**row, **{f"{name}_rank": criteria.get(name) for name in names}})
        return rows
