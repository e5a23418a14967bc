"""Gates: the limits that a comparison is held to, each with a verdict of its own."""

from __future__ import annotations

from dataclasses import dataclass

from onnxrank.results import Comparison
from onnxrank.stages.compare import missed


@dataclass(frozen=True)
class Gate:
    """One limit, by the name of its option; `failure` says how it was missed, None if it holds."""

    name: str
    limit: float
    failure: str | None


def judge(comparison: Comparison, **limits: float | None) -> tuple[Gate, ...]:
    """Hold a comparison to every limit that is not None; see `missed` for their names.

    Raises
    ------
    DataError
        There is nothing that a gate could be judged by.
    """
    return tuple(
        Gate(name.replace("_", "-"), limit, missed(comparison, **{name: limit}))
        for name, limit in limits.items()
        if limit is not None
    )
