"""Build small models, split them at full rank, run them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxrank.graph.find import ALL, find_sites
from onnxrank.graph.model import Model, load
from onnxrank.graph.rewrite import rewrite
from onnxrank.graph.sites import Selection, Site, Skip
from onnxrank.graph.weights import weight_matrix
from onnxrank.linalg.factorize import Factors

FLOAT = TensorProto.FLOAT
MS = "com.microsoft"
Feeds = Mapping[str, Any]

ort.set_default_logger_severity(4)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Normal numbers that depend on the shape, too, so that no two tensors are alike."""
    return rng(hash((seed, shape)) % 2**32).standard_normal(shape).astype(dtype)


def info(name: str, shape: Sequence[Any] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def const(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), **attrs)


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model; `inputs` by name, a shape (float) or a ValueInfoProto; outputs without a type."""
    tensors = (
        [const(k, v) for k, v in constants.items()]
        if isinstance(constants, Mapping)
        else list(constants)
    )
    infos = [v if isinstance(v, onnx.ValueInfoProto) else info(k, v) for k, v in inputs.items()]
    if ir < 4:
        infos += [info(t.name, list(t.dims), t.data_type) for t in tensors]
    used = {n.domain for n in nodes} - {"", "ai.onnx"}
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(d, (domains or {}).get(d, 1)) for d in sorted(used)]
    graph = helper.make_graph(
        list(nodes), "graph", infos, [onnx.ValueInfoProto(name=o) for o in outputs], tensors
    )
    return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))


def single(
    op: str,
    inputs: Mapping[str, Any],
    constants: Mapping[str, Any],
    order: Sequence[str],
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    ir: int = 8,
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node named 'n'."""
    made = node(op, order, outputs, name="n", **attrs)
    return make([made], inputs, [o for o in outputs if o], constants, opset=opset, ir=ir)


def found(
    proto: onnx.ModelProto | Path, selection: Selection = ALL
) -> tuple[list[Site], list[Skip]]:
    return find_sites(load(proto), selection)


def codes(proto: onnx.ModelProto | Path, selection: Selection = ALL) -> dict[str, str]:
    """What became of each weight-bearing node: 'site', 'hold:CODE' or the code of its skip."""
    sites, skips = found(proto, selection)
    answer = {s.name: f"hold:{s.hold.code}" if s.hold else "site" for s in sites}
    for skip in skips:
        assert skip.reason and skip.name not in answer
        answer[skip.name] = skip.code
    return answer


def only(proto: onnx.ModelProto | Path) -> Site:
    """The one site that can be split."""
    sites, _ = found(proto)
    (site,) = [s for s in sites if not s.hold]
    return site


def full_rank(model: Model, site: Site) -> Factors:
    """A pair whose product is the weight."""
    u, s, vt = np.linalg.svd(weight_matrix(model, site), full_matrices=False)
    return Factors((u * s[:, None, :], vt))


def random_pair(site: Site, rank: int = 2, shift: bool = True, seed: int = 5) -> Factors:
    """A pair, and a shift, that have nothing to do with the weight."""
    r = rng(seed)
    rank = min(rank, site.full_rank)
    a = r.standard_normal((site.groups, site.d_in, rank)) / np.sqrt(site.d_in)
    b = r.standard_normal((site.groups, rank, site.d_out)) / np.sqrt(rank)
    return Factors((a, b), r.standard_normal((site.groups, site.d_out)) if shift else None)


def split(
    proto: onnx.ModelProto | Path,
    factors: Callable[[Model, Site], Factors] = full_rank,
    selection: Selection = ALL,
    folder: Path | None = None,
) -> tuple[onnx.ModelProto, list[Site]]:
    """The model with everything split that can be, and those sites."""
    model = load(proto, folder)
    sites = [s for s in find_sites(model, selection)[0] if not s.hold]
    return rewrite(model, [(s, factors(model, s)) for s in sites]), sites


def run(
    proto: onnx.ModelProto | Path,
    feeds: Feeds,
    outputs: Sequence[str] | None = None,
    optimize: bool = True,
) -> Any:
    """Outputs in onnxruntime."""
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    source = proto.SerializeToString() if isinstance(proto, onnx.ModelProto) else str(proto)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(outputs, dict(feeds))


def run_plain(proto: onnx.ModelProto | Path, feeds: Feeds) -> Any:
    """As `run`, node by node: optimized, it computes with integers behind DequantizeLinear."""
    return run(proto, feeds, optimize=False)


def reference(proto: onnx.ModelProto, feeds: Feeds) -> Any:
    """Outputs in onnx's reference evaluator, for what onnxruntime does not run."""
    return ReferenceEvaluator(proto).run(None, dict(feeds))


def differ(expected: Any, got: Any) -> float:
    """Largest difference of outputs, relative to the largest entry; inf where they cannot match.

    Outputs may be tensors, or lists and maps of them.
    """
    if isinstance(expected, dict):
        if expected.keys() != got.keys():
            return np.inf
        return differ(list(expected.values()), [got[key] for key in expected])
    if isinstance(expected, (list, tuple)):
        if len(expected) != len(got):
            return np.inf
        return max(map(differ, expected, got), default=0.0)
    a, b = np.asarray(expected), np.asarray(got)
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf
    if a.dtype.kind not in "fiubcV":
        return 0.0 if np.array_equal(a, b) else np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    keep = np.isfinite(a)
    if not np.array_equal(keep, np.isfinite(b)):
        return np.inf
    scale = np.abs(a[keep]).max(initial=1e-3)
    return float(np.abs(a[keep] - b[keep]).max(initial=0.0) / scale)


def assert_full(
    proto: onnx.ModelProto,
    feeds: Feeds,
    sites: int | None = None,
    *,
    selection: Selection = ALL,
    runner: Callable[[onnx.ModelProto, Feeds], Any] = run,
    tolerance: float = 1e-5,
) -> onnx.ModelProto:
    """Split everything at full rank: same outputs, nothing else changed. Gives the result."""
    from .lossless import assert_lossless

    before = proto.SerializeToString(deterministic=True)
    written, split_sites = split(proto, selection=selection)
    if sites is not None:
        assert len(split_sites) == sites, (split_sites, found(proto, selection)[1])
    assert proto.SerializeToString(deterministic=True) == before, "the original was touched"
    assert_lossless(proto, written, split_sites)
    assert differ(runner(proto, feeds), runner(written, feeds)) < tolerance
    return written


def ops(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in proto.graph.node)


def tensors(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def body(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, Any] | None = None,
    name: str = "body",
) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes),
        name,
        list(inputs),
        list(outputs),
        [const(k, v) for k, v in (constants or {}).items()],
    )


def without_hold(site: Site) -> Site:
    return dataclasses.replace(site, hold=None)
