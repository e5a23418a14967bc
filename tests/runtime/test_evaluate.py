import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxrank.errors import DataError, ModelError
from onnxrank.graph.model import load
from onnxrank.runtime.data import open_data
from onnxrank.runtime.evaluate import compare_outputs, run_outputs
from onnxrank.runtime.session import Run
from onnxrank.runtime.timing import latency

from .cases import constant, info, mlp, model

RNG = np.random.default_rng(0)
X = RNG.standard_normal((90, 8)).astype(np.float32)


def compared(first, second, data=None, **more):
    a, b = load(first), load(second)
    return compare_outputs(a, b, open_data(data or {"x": X}, a.inputs, Run()), Run(), **more)


def outputs(proto, data=None):
    opened = load(proto)
    source = open_data(data or {"x": X}, opened.inputs, Run(batch_size=90))
    return np.concatenate([out["y"] for _, out in run_outputs(opened, source, Run())])


def test_equal_models_agree():
    result = compared(mlp(), mlp())
    assert result.samples == 90 and result.outputs["y"].max_abs == 0
    assert result.classes == "y" and result.top1.agreement == 1 and result.top1.n == 90
    assert not result.top1.labelled and result.provider == "cpu" and not result.skipped


def test_differences_are_measured_over_all_batches():
    result = compared(mlp(0), mlp(1))
    a, b = outputs(mlp(0)), outputs(mlp(1))
    stats = result.outputs["y"]
    assert stats.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-5)
    assert stats.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)
    assert result.top1.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())


def test_labels_give_accuracies():
    opened = load(mlp(0))
    labels = np.concatenate(
        [
            out["y"].argmax(1)
            for _, out in run_outputs(opened, open_data([{"x": X}], opened.inputs, Run()), Run())
        ]
    )
    labels[:9] = (labels[:9] + 1) % 4
    for given in (labels, labels.reshape(-1, 1)):
        top1 = compared(mlp(0), mlp(0), {"x": X, "__label__": given}).top1
        assert top1.labelled == 90 and top1.accuracy_reference == pytest.approx(0.9)
    with pytest.raises(DataError, match="labels of type float64 .* are no class numbers"):
        compared(mlp(), mlp(), {"x": X, "__label__": labels * 0.5})


def classifier(names):
    """Label and a sequence of maps, as sklearn's classifiers are exported."""
    key = "classlabels_strings" if isinstance(names[0], str) else "classlabels_int64s"
    kind = TensorProto.STRING if isinstance(names[0], str) else TensorProto.INT64
    maps = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    return model(
        [
            helper.make_node("MatMul", ["x", "w"], ["scores"], "mm"),
            helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", **{key: names}),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        [info("x", ["n", 8])],
        [
            info("label", ["n"], TensorProto.INT64),
            helper.make_value_info("maps", helper.make_sequence_type_proto(maps)),
        ],
        [constant("w", np.random.default_rng(3).standard_normal((8, 3)).astype(np.float32))],
        domains=["ai.onnx.ml"],
    )


@pytest.mark.parametrize("names", [[0, 1, 2], [3, 5, 9], ["a", "b", "c"]])
def test_maps_of_classes_are_scores(names):
    proto = classifier(names)
    first = np.array(names)[(X @ onnx.numpy_helper.to_array(proto.graph.initializer[0])).argmax(1)]
    result = compared(proto, proto, {"x": X, "__label__": first})
    assert set(result.outputs) == {"label", "maps"} and result.classes == "maps"
    assert result.top1.accuracy_reference == 1 and result.top1.agreement == 1


def test_embeddings_have_no_classes():
    proto = mlp()
    proto.graph.node[-1].output[0] = "raw"
    proto.graph.node.append(helper.make_node("LpNormalization", ["raw"], ["y"], axis=1, p=2))
    result = compared(proto, proto)
    assert result.classes is None and result.top1 is None and result.outputs["y"].cosine == 1


def test_sequences_and_text():
    proto = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "mm"),
            helper.make_node("SequenceConstruct", ["h", "x"], ["list"]),
            helper.make_node("Cast", ["h"], ["text"], to=TensorProto.STRING),
        ],
        [info("x", ["n", 8])],
        [
            helper.make_value_info(
                "list",
                helper.make_sequence_type_proto(
                    helper.make_tensor_type_proto(TensorProto.FLOAT, None)
                ),
            ),
            info("text", ["n", 8], TensorProto.STRING),
        ],
        [constant("w", np.eye(8, dtype=np.float32))],
    )
    result = compared(proto, proto)
    assert result.outputs["list"].max_abs == 0 and result.skipped == {"text": "text"}


def test_models_that_differ_in_form_are_named():
    other = mlp()
    other.graph.output[0].name = other.graph.node[-1].output[0] = "z"
    with pytest.raises(ModelError, match=r"its outputs are \['z'\], those of graph are \['y'\]"):
        compared(mlp(), other)
    with pytest.raises(ModelError, match=r"output 'y' has shape \[\d+, 4\].*\[\d+, 5\]"):
        compared(mlp(), mlp(widths=(8, 16, 5)))


def test_progress_and_latency():
    calls = []
    compared(mlp(), mlp(), progress=lambda *call: calls.append(call))
    assert calls[-1] == (90, 90, "comparing")
    small, large = load(mlp()), load(mlp(widths=(8, 2000, 2000, 4)))
    found = latency(small, large, {"x": X}, Run(threads=1), repeats=5)
    assert found.ratio > 1.5 and found.candidate > found.original > 0
    original, candidate, ratio = latency(small, small, {"x": X}, Run(), repeats=5, seconds=0)
    assert original > 0 and candidate > 0 and ratio > 0
