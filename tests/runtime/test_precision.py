"""bfloat16 models: run as float32 where kernels are missing, written back as they were."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxrank.graph.model import load
from onnxrank.graph.precision import has_bfloat16, widened
from onnxrank.runtime.session import Run, execute, open_session
from onnxrank.stages.deliver import deliver
from onnxrank.stages.goal import Goal, Manner


def bfloat16_model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    kind = TensorProto.BFLOAT16
    low = rng.standard_normal((32, 4)) @ rng.standard_normal((4, 64))
    weights = {"w1": low, "b1": rng.standard_normal(64), "w2": rng.standard_normal((64, 8))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"], name="fc1"),
            helper.make_node("Add", ["a", "b1"], ["b"]),
            helper.make_node("Cast", ["b"], ["c"], to=kind),
            helper.make_node("MatMul", ["c", "w2"], ["y"], name="fc2"),
        ],
        "bf",
        [helper.make_tensor_value_info("x", kind, ["n", 32])],
        [helper.make_tensor_value_info("y", kind, ["n", 8])],
        [numpy_helper.from_array(v.astype(ml_dtypes.bfloat16), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def samples() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.standard_normal((256, 6)) @ rng.standard_normal((6, 32))).astype(ml_dtypes.bfloat16)


def test_widening_changes_types_and_nothing_else() -> None:
    proto = bfloat16_model()
    before = proto.SerializeToString()
    wide = widened(proto, None, "bf")
    assert proto.SerializeToString() == before
    assert has_bfloat16(proto) and not has_bfloat16(wide)
    for old, new in zip(proto.graph.initializer, wide.graph.initializer, strict=True):
        assert np.array_equal(
            numpy_helper.to_array(old).astype(np.float32), numpy_helper.to_array(new)
        )
    onnx.checker.check_model(wide, full_check=True)


def test_a_bfloat16_model_runs_on_the_cpu() -> None:
    proto, x = bfloat16_model(), samples()[:5]
    session = open_session(proto, None, Run(provider="cpu"))
    (y,) = execute(session, ["y"], {"x": x}, where="test")
    values = {t.name: numpy_helper.to_array(t).astype(np.float32) for t in proto.graph.initializer}
    expected = (x.astype(np.float32) @ values["w1"] + values["b1"]) @ values["w2"]
    assert np.allclose(y.astype(np.float32), expected, rtol=1e-2, atol=1e-1)


def test_a_bfloat16_model_is_compressed_in_its_own_type(tmp_path: Path) -> None:
    onnx.save(bfloat16_model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=samples())
    goal, manner = Goal(energy=0.9999), Manner(align=1)
    report = deliver(
        tmp_path / "m.onnx", tmp_path / "s.onnx", data=tmp_path / "x.npz", goal=goal, manner=manner
    )
    assert report.comparison is not None
    assert report.comparison.outputs["y"].relative_l2 < 0.05
    small = load(tmp_path / "s.onnx").proto
    assert {t.data_type for t in small.graph.initializer} == {TensorProto.BFLOAT16}
    assert any("rank_in" in t.name for t in small.graph.initializer)
