"""Measure the utilized rank of ONNX layers on data, and factorize those that use little of it.

    import onnxrank as ox

    moments = ox.collect("model.onnx", data)
    report = ox.analyze("model.onnx", moments, energy=0.99)
    plan = ox.plan("model.onnx", moments, energy=0.99)
    small = ox.compress("model.onnx", plan, moments)
    result = ox.compare("model.onnx", small, evaluation)

Names are loaded when they are first used, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onnxrank.version import __version__

if TYPE_CHECKING:
    from onnxrank.errors import (
        DataError,
        ModelError,
        MomentsError,
        OnnxRankError,
        PlanError,
        WriteError,
    )
    from onnxrank.graph.model import Model, load
    from onnxrank.graph.sites import Selection
    from onnxrank.moments import Moments
    from onnxrank.results import Comparison, Plan, Report
    from onnxrank.runtime.images import Preprocess
    from onnxrank.runtime.session import Run
    from onnxrank.stages.analyze import analyze
    from onnxrank.stages.collect import collect
    from onnxrank.stages.compare import compare
    from onnxrank.stages.compress import compress
    from onnxrank.stages.inspect import inspect
    from onnxrank.stages.merge import merge
    from onnxrank.stages.plan import plan

_HOMES = {
    "onnxrank.errors": (
        "DataError",
        "ModelError",
        "MomentsError",
        "OnnxRankError",
        "PlanError",
        "WriteError",
    ),
    "onnxrank.graph.model": ("Model", "load"),
    "onnxrank.graph.sites": ("Selection",),
    "onnxrank.moments": ("Moments",),
    "onnxrank.results": ("Comparison", "Plan", "Report"),
    "onnxrank.runtime.images": ("Preprocess",),
    "onnxrank.runtime.session": ("Run",),
    "onnxrank.stages.analyze": ("analyze",),
    "onnxrank.stages.collect": ("collect",),
    "onnxrank.stages.compare": ("compare",),
    "onnxrank.stages.compress": ("compress",),
    "onnxrank.stages.inspect": ("inspect",),
    "onnxrank.stages.merge": ("merge",),
    "onnxrank.stages.plan": ("plan",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Comparison",
    "DataError",
    "Model",
    "ModelError",
    "Moments",
    "MomentsError",
    "OnnxRankError",
    "Plan",
    "PlanError",
    "Preprocess",
    "Report",
    "Run",
    "Selection",
    "WriteError",
    "__version__",
    "analyze",
    "collect",
    "compare",
    "compress",
    "inspect",
    "load",
    "merge",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'onnxrank' has no attribute '{name}'")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
