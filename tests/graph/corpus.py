"""Run a corpus of models through the graph room: find, split everything at full rank, compare.

Used by the fast tests here and by ``tools/corpus.py``, which runs all of it.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from onnxrank.errors import OnnxRankError
from onnxrank.graph.find import find_sites, find_units
from onnxrank.graph.model import Model, load
from onnxrank.graph.rewrite import rewrite
from onnxrank.graph.sites import Selection, Site
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.factorize import Factors

from .build import differ, reference
from .lossless import MOVING, differences

FIXTURES = Path(__file__).parent.parent / "fixtures"
HOLDERS = {"If", "Loop", "Scan", "SequenceMap", "Constant"}
FLOATS = (1, 10, 11, 16)


@dataclass
class Case:
    """A model and one input; the model may be a file."""

    name: str
    model: onnx.ModelProto | Path
    feeds: dict[str, Any]


@dataclass
class Outcome:
    """What became of a case."""

    name: str
    sites: int = 0
    split: int = 0
    held: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    error: float | None = None
    """Largest relative difference of the outputs; None if the original does not run."""
    tolerance: float = 0.0
    refused: str = ""
    raised: str = ""

    @property
    def found(self) -> dict[str, Any]:
        """What the manifest of the fixtures expects of a case."""
        if self.refused:
            return {"error": self.refused.splitlines()[0]}
        skipped = dict(sorted(self.skipped.items()))
        return {"sites": self.sites, "split": self.split, "skipped": skipped}

    @property
    def good(self) -> bool:
        """Nothing raised, changed, differed or went without a reason."""
        wrong = self.error is not None and not self.error <= self.tolerance
        return not (wrong or self.raised or self.changed or self.unexplained)


def generated() -> list[Case]:
    """The cases of onnx's own operator tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    cases = []
    for case in found:
        if case.model is None or not case.data_sets:
            continue
        names = [v.name for v in case.model.graph.input]
        values = [_value(v) for v in case.data_sets[0][0]]
        cases.append(Case(case.name, case.model, dict(zip(names, values, strict=False))))
    return cases


def _value(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if np.isscalar(value) else value


def stored() -> Iterator[Case]:
    """The models that the onnx package ships with inputs."""
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        for folder in sorted((root / kind).glob("test_*")):
            model = onnx.load(folder / "model.onnx")
            feeds = {}
            for k, value in enumerate(model.graph.input):
                path = folder / "test_data_set_0" / f"input_{k}.pb"
                if path.exists():
                    feeds[value.name] = _read(path, value)
            yield Case(folder.name, model, feeds)


def _read(path: Path, value: onnx.ValueInfoProto) -> Any:
    if value.type.HasField("sequence_type"):
        sequence = onnx.SequenceProto.FromString(path.read_bytes())
        return numpy_helper.to_list(sequence)
    if value.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(path.read_bytes()))
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def light(largest: int = 2**22) -> Iterator[Case]:
    """Whole networks whose weights onnx has replaced by ConstantOfShape; here they are filled.

    Weights above `largest` entries stay as they are.
    """
    root = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(root.glob("light_*.onnx")):
        model = onnx.load(path)
        yield Case(path.stem, model, _random(model))
        filled = fill(model, largest)
        yield Case(f"{path.stem}+filled", filled, _random(filled))


def _random(model: onnx.ModelProto) -> dict[str, Any]:
    held = {t.name for t in model.graph.initializer}
    rng = np.random.default_rng(0)
    return {
        v.name: rng.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim]).astype("f")
        for v in model.graph.input
        if v.name not in held
    }


def fill(model: onnx.ModelProto, largest: int) -> onnx.ModelProto:
    """Random initializers in the place of ConstantOfShape nodes, scaled to keep a signal."""
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    rng = np.random.default_rng(1)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in list(filled.graph.node):
        shape = shapes.get(node.input[0]) if node.op_type == "ConstantOfShape" else None
        if shape is None or np.prod(shape) > largest:
            continue
        fan = max(int(np.prod(shape[1:])), 1)
        value = (
            np.abs(rng.standard_normal(shape)) if len(shape) == 1 else rng.standard_normal(shape)
        )
        filled.graph.initializer.append(
            numpy_helper.from_array((value / np.sqrt(fan)).astype("f"), node.output[0])
        )
        if filled.ir_version < 4:
            filled.graph.input.append(
                onnx.helper.make_tensor_value_info(node.output[0], 1, shape.tolist())
            )
        filled.graph.node.remove(node)
    return filled


def manifest() -> list[dict[str, Any]]:
    """The lines of the fixtures' manifest."""
    return list(json.loads((FIXTURES / "manifest.json").read_text()))


def fixtures(exporter: str = "") -> Iterator[Case]:
    """Graphs from real exporters, with the inputs beside them; of one, or of all."""
    for entry in manifest():
        if exporter not in ("", entry["exporter"]):
            continue
        file = FIXTURES / entry["file"]
        inputs = file.with_suffix(".npz")
        if file.exists():
            feeds = dict(np.load(inputs, allow_pickle=False)) if inputs.exists() else {}
            yield Case(entry["file"], file, feeds)


def weighted(case: Case) -> Iterator[Case]:
    """Variants of a case whose float inputs are initializers: all but the first, and each alone."""
    if not isinstance(case.model, onnx.ModelProto) or case.model.ir_version < 4:
        return
    free = [
        name
        for name, value in case.feeds.items()
        if isinstance(value, np.ndarray)
        and value.size
        and value.dtype.kind in "fV"
        and name not in {t.name for t in case.model.graph.initializer}
    ]
    choices = [free[1:]] if len(free) > 1 else []
    choices += [[name] for name in free if len(free) > 1 and [name] not in choices]
    for k, names in enumerate(choices):
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for value in list(model.graph.input):
            if value.name in names:
                model.graph.input.remove(value)
        tensors = [numpy_helper.from_array(case.feeds[name], name) for name in names]
        model.graph.initializer.extend(tensors)
        feeds = {name: value for name, value in case.feeds.items() if name not in names}
        yield Case(f"{case.name}+w{k}", model, feeds)


def factors(model: Model, site: Site) -> Factors:
    """A pair of full rank whose product is the weight, at small cost for large ones too."""
    weight = weight_matrix(model, site)
    if weight.size <= 1 << 16:
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        return Factors((u * s[:, None, :], vt))
    rank = site.full_rank
    order = np.random.default_rng(0).permutation(rank)
    turn = np.zeros((rank, rank))
    turn[np.arange(rank), order] = 2.0
    if site.d_in >= site.d_out:
        return Factors((weight[:, :, order] / 2, np.repeat(turn[None], site.groups, 0)))
    back = np.repeat((turn.T / 4)[None], site.groups, 0)
    return Factors(
        (
            back,
            (turn @ weight.swapaxes(0, 1).reshape(rank, -1))
            .reshape(rank, site.groups, -1)
            .swapaxes(0, 1),
        )
    )


def judge(case: Case, selection: Selection | None = None) -> Outcome:
    """Find, split everything, compare; never raises but for faults of the corpus."""
    outcome = Outcome(case.name)
    try:
        _judge(case, selection or Selection(quantized=True), outcome)
    except OnnxRankError as error:
        outcome.refused = str(error)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        outcome.raised = f"{type(error).__name__}: {error}"
    return outcome


def _judge(case: Case, selection: Selection, outcome: Outcome) -> None:
    model = load(case.model)
    sites, skips = find_sites(model, selection)
    units = find_units(model, sites)
    assert sum(len(u.sites) for u in units) == len(sites)
    outcome.sites = len(sites)
    outcome.held.update(s.hold.code for s in sites if s.hold)
    outcome.skipped.update(s.code for s in skips)
    assert all(s.reason for s in skips)
    free = [s for s in sites if not s.hold]
    outcome.split = len(free)
    outcome.unexplained = sorted(
        _candidates(model)
        - {(s.scope, s.output) for s in sites}
        - {(s.scope, _output(model, s)) for s in skips}
    )
    written = rewrite(model, [(s, factors(model, s)) for s in free])
    if model.document is model.proto:
        outcome.changed = list(differences(model.proto, written, free))
    if not free:
        return
    outcome.tolerance = {10: 2e-2, 16: 1e-1}.get(free[0].weight.dtype, 1e-4)
    how = runner(model)
    expected = attempt(lambda: how(model.proto, case.feeds))
    if expected is None:
        expected, how = attempt(lambda: reference(model.proto, case.feeds)), reference
    if expected is not None:
        outcome.error = differ(expected, how(written, case.feeds))


def runner(model: Model) -> Callable[..., Any]:
    """Runs protos that come from `model`, whose external data lie beside it, node by node."""

    def run(proto: onnx.ModelProto, feeds: Any, outputs: Any = None) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if model.folder is not None:
            key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(key, str(model.folder))
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        fed = [*session.get_inputs(), *session.get_overridable_initializers()]
        return session.run(outputs, {v.name: feeds[v.name] for v in fed if v.name in feeds})

    return run


def attempt(action: Callable[[], Any]) -> Any:
    """What it gives; None where it fails, as not every model runs everywhere."""
    try:
        return action()
    except Exception:  # noqa: BLE001 - onnxruntime raises of many kinds
        return None


def _output(model: Model, skip: Any) -> str:
    """The first output of the node that a skip is about, by its name."""
    for node in model.index.graphs[skip.scope].node:
        first = next((o for o in node.output if o), "")
        if skip.name in (node.name, first) or skip.name.endswith(
            (f"/{first}", f"{node.name}/recurrent")
        ):
            if node.name == skip.name or not node.name or first in skip.name:
                return first
    return ""


def _candidates(model: Model) -> set[Any]:
    """Nodes that read a stored float matrix themselves; found without the room's own code."""
    found = set()
    for scope, graph in model.index.graphs.items():
        matrices = {
            t.name
            for t in graph.initializer
            if t.data_type in FLOATS and sum(d > 1 for d in t.dims) > 1
        }
        for node in graph.node:
            first = next((o for o in node.output if o), "")
            if first and node.op_type not in MOVING | HOLDERS and matrices & set(node.input):
                found.add((scope, first))
    return found
