import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxrank.errors import DataError, ModelError, MomentsError
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.scopes import MAIN
from onnxrank.graph.sites import Selection, View
from onnxrank.linalg.layout import Axis, rows
from onnxrank.moments import Moments, merge
from onnxrank.runtime.collect import Checkpoint, collect
from onnxrank.runtime.data import open_data
from onnxrank.runtime.session import Run, execute, open_session

from .cases import constant, info, mlp, model

RNG = np.random.default_rng(0)


def views_of(opened):
    return {site.view: site.d_in for site in find_sites(opened, Selection())[0]}


def gathered(proto, data, run=None, **more):
    opened, run = load(proto), run or Run()
    return collect(opened, open_data(data, opened.inputs, run), run, views=views_of(opened), **more)


def direct(proto, feeds, view, keep=None):
    """n, sum and Gram matrix by running everything at once, in float64."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.append(onnx.ValueInfoProto(name=view.tensor))
    (x,) = execute(open_session(shown, None, Run()), [view.tensor], feeds, where="all")
    r = rows(x, view.layout, keep).astype(np.float64)
    return r.shape[1], r.sum(1), r.swapaxes(1, 2) @ r


def check(moments, proto, feeds, keep=None, rtol=1e-5):
    for view, (a, b) in moments.views.items():
        n, total, gram = direct(proto, feeds, view, keep)
        assert a.n + b.n == n
        scale = np.abs(gram).max()
        np.testing.assert_allclose(a.sum + b.sum, total, rtol=rtol, atol=rtol * np.sqrt(scale * n))
        np.testing.assert_allclose(a.gram + b.gram, gram, rtol=rtol, atol=rtol * scale)


def test_moments_are_those_of_all_rows_in_two_folds():
    proto, x = mlp(), RNG.standard_normal((100, 8)).astype(np.float32)
    moments = gathered(proto, {"x": x})
    assert {view.tensor for view in moments.views} == {"x", "h1"}
    check(moments, proto, {"x": x})
    assert all(abs(a.n - b.n) <= 6 for a, b in moments.views.values())
    assert moments.data.samples == 100 and moments.data.provider == "cpu"
    assert moments.complete and moments.model_sha256 == load(proto).sha256


def test_batch_size_and_waves_change_nothing():
    proto, x = mlp(widths=(8, 16, 16, 4)), RNG.standard_normal((100, 8)).astype(np.float32)
    whole = gathered(proto, {"x": x})
    for run in (Run(batch_size=7), Run(memory=200_000), Run(memory=2**30)):
        other = gathered(proto, {"x": x}, run)
        for view, folds in whole.views.items():
            for a, b in zip(folds, other.views[view], strict=True):
                assert a.n == b.n
                np.testing.assert_allclose(a.gram, b.gram, rtol=1e-5, atol=1e-4)
        assert other.data.parts == whole.data.parts
    with pytest.raises(MomentsError, match="tensor 'x' take .* MiB, more than .*--memory"):
        gathered(proto, {"x": x}, Run(memory=1000))


def conv_model():
    weights = [
        constant("k", RNG.standard_normal((6, 3, 3, 3)).astype(np.float32)),
        constant("p", RNG.standard_normal((4, 6, 1, 1)).astype(np.float32)),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["a"], "first", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "p"], ["y"], "second"),
    ]
    return model(nodes, [info("image", ["n", 3, 9, 8])], [info("y", ["n", 4, 5, 4])], weights)


def test_convolutions(monkeypatch):
    proto, image = conv_model(), RNG.standard_normal((20, 3, 9, 8)).astype(np.float32)
    check(gathered(proto, {"image": image}), proto, {"image": image})
    monkeypatch.setattr("onnxrank.runtime.tally._PIECE", 1)  # a sample at a time
    check(gathered(proto, {"image": image}), proto, {"image": image})
    drawn = gathered(proto, {"image": image}, Run(rows=5.0))
    assert {view.tensor: sum(f.n for f in folds) for view, folds in drawn.views.items()} == {
        "image": pytest.approx(5 * 27, abs=8),
        "b": pytest.approx(5 * 6, abs=8),
    }


def loop_model():
    """y = x after three turns of x <- relu(x W), W a constant of the outer graph."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "w"], ["t"], "inner"),
            helper.make_node("Relu", ["t"], ["u"]),
            helper.make_node("Identity", ["c"], ["c_out"]),
        ],
        "body",
        [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("s", ["n", 4])],
        [info("c_out", [], TensorProto.BOOL), info("u", ["n", 4])],
    )
    return model(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], "loop", body=body)],
        [info("x", ["n", 4])],
        [info("y", ["n", 4])],
        [
            constant("w", RNG.standard_normal((4, 4)).astype(np.float32)),
            constant("times", np.int64(3)),
        ],
    )


def test_bodies_are_summed_however_often_they_run():
    proto, x = loop_model(), RNG.standard_normal((32, 4)).astype(np.float32)
    moments = gathered(proto, {"x": x}, Run(batch_size=4))
    ((view, (a, b)),) = moments.views.items()
    assert view.scope != MAIN and a.n == b.n == 3 * 16
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    seen, gram = x, 0
    for _ in range(3):
        gram = gram + seen.T.astype(np.float64) @ seen
        seen = np.maximum(seen @ weight, 0)
    np.testing.assert_allclose((a.gram + b.gram)[0], gram, rtol=1e-4)


def test_a_graph_that_sums_its_rows_itself_gives_the_same(monkeypatch):
    monkeypatch.setattr("onnxrank.runtime.collect._reduces", lambda run: True)
    image = RNG.standard_normal((20, 3, 9, 8)).astype(np.float32)
    proto = conv_model()
    check(gathered(proto, {"image": image}), proto, {"image": image})
    x = RNG.standard_normal((100, 8)).astype(np.float32)
    check(gathered(mlp(), {"x": x}), mlp(), {"x": x})
    x[70:] = 3e38
    with pytest.raises(DataError, match="holds NaN or infinity"):
        gathered(mlp(), {"x": x})


def token_model():
    """ids, mask -> MatMul on [n, t, d]; pooled [n, d] -> MatMul."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["h"], "tokens"),
        helper.make_node("ReduceMean", ["h"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "w"], ["y"], "head"),
    ]
    return model(
        [*nodes, helper.make_node("Identity", ["mask"], ["mask_out"])],
        [info("ids", ["n", "t"], TensorProto.INT64), info("mask", ["n", "t"], TensorProto.INT64)],
        [info("y", ["n", 4]), onnx.ValueInfoProto(name="mask_out")],
        [
            constant("table", RNG.standard_normal((50, 4)).astype(np.float32)),
            constant("w", RNG.standard_normal((4, 4)).astype(np.float32)),
        ],
    )


def token_data(n=40, t=7):
    lengths = RNG.integers(1, t + 1, n)
    return {
        "ids": RNG.integers(0, 50, (n, t)),
        "mask": (np.arange(t) < lengths[:, None]).astype(np.int64),
    }


def test_padding_is_no_data():
    proto, data = token_model(), token_data()
    moments = gathered(proto, data, Run(mask="mask"))
    n = {view.tensor: a.n + b.n for view, (a, b) in moments.views.items()}
    assert n == {"e": data["mask"].sum(), "pooled": 40}
    view = next(v for v in moments.views if v.tensor == "e")
    _, total, _ = direct(proto, data, view, data["mask"].reshape(-1) != 0)
    np.testing.assert_allclose(sum(f.sum for f in moments.views[view]), total, rtol=1e-4)
    with pytest.raises(DataError, match="mask 'msk' is no input.*'ids', 'mask'"):
        gathered(proto, data, Run(mask="msk"))


def test_a_mask_that_fits_nothing_is_an_error():
    proto = mlp()
    proto.graph.input.append(info("m", ["n", 5]))
    proto.graph.node.append(helper.make_node("Identity", ["m"], ["m_out"]))
    proto.graph.output.append(onnx.ValueInfoProto(name="m_out"))
    data = {"x": np.ones((9, 8), np.float32), "m": np.ones((9, 5), np.float32)}
    with pytest.raises(DataError, match=r"mask .m. fits no layer: a mask of shape"):
        gathered(proto, data, Run(mask="m"))


def test_drawn_rows_are_unbiased_and_the_same_in_every_wave():
    proto, x = mlp(), RNG.standard_normal((4000, 8)).astype(np.float32)
    x += np.linspace(0, 2, 4000, dtype=np.float32)[:, None]  # late samples differ
    whole, few = gathered(proto, {"x": x}), gathered(proto, {"x": x}, Run(rows=40.0))
    for view, folds in whole.views.items():
        d = folds[0].sum.shape[1]
        n = sum(f.n for f in few.views[view])
        assert abs(n - 40 * d) <= 130
        mean = sum(f.gram for f in few.views[view]) / n
        expected = sum(f.gram for f in folds) / 4000
        assert np.linalg.norm(mean - expected) < 0.15 * np.linalg.norm(expected)
    waves = gathered(proto, {"x": x}, Run(rows=40.0, memory=300_000))
    for view, folds in few.views.items():
        for a, b in zip(folds, waves.views[view], strict=True):
            np.testing.assert_array_equal(a.gram, b.gram)
    other = gathered(proto, {"x": x}, Run(rows=40.0, seed=1))
    view = next(iter(few.views))
    assert not np.array_equal(other.views[view][0].gram, few.views[view][0].gram)


def test_shards_add_up_and_are_not_added_twice(tmp_path):
    proto, x = mlp(), RNG.standard_normal((100, 8)).astype(np.float32)
    opened = load(proto)
    source = open_data({"x": x}, opened.inputs, Run())
    parts = [collect(opened, source.shard(k, 3), Run(), views=views_of(opened)) for k in (1, 2, 3)]
    whole = collect(opened, source, Run(), views=views_of(opened))
    for k, part in enumerate(parts):
        part.save(tmp_path / str(k))
    merged = merge([Moments.load(tmp_path / str(k)) for k in range(3)])
    for view, folds in whole.views.items():
        for a, b in zip(folds, merged.views[view], strict=True):
            assert a.n == b.n
            np.testing.assert_allclose(a.gram, b.gram, rtol=1e-5, atol=1e-4)
    assert merged.data.samples == 100
    with pytest.raises(MomentsError, match="the same data would be added twice"):
        merge([merged, parts[1]])
    more = collect(opened, source.shard(3, 3), Run(), views=views_of(opened), start=parts[0])
    assert more.data.samples == parts[0].data.samples + parts[2].data.samples
    # The content is what counts, not the batches it came in.
    small = Run(batch_size=5)
    again = collect(
        opened,
        open_data({"x": x}, opened.inputs, small).shard(2, 3),
        small,
        views=views_of(opened),
    )
    with pytest.raises(MomentsError, match="added twice"):
        merge([parts[1], again])


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("memory", [0, 420_000])
@pytest.mark.parametrize("after", [1, 3, 9])
def test_an_interrupted_collection_goes_on(tmp_path, memory, after):
    proto, x = mlp(widths=(8, 16, 16, 4)), RNG.standard_normal((100, 8)).astype(np.float32)
    run = Run(batch_size=10, memory=memory, rows=3.0)
    calls = 0

    def save(moments):
        nonlocal calls
        calls += 1
        assert not moments.complete
        moments.save(tmp_path / "m")
        if calls == after:
            raise Interrupt

    with pytest.raises(Interrupt):
        gathered(proto, {"x": x}, run, checkpoint=Checkpoint(save, 0.0))
    half = Moments.load(tmp_path / "m")
    resumed, whole = gathered(proto, {"x": x}, run, start=half), gathered(proto, {"x": x}, run)
    assert resumed.complete and resumed.data.samples == 100
    assert resumed.data.parts == whole.data.parts
    for view, folds in whole.views.items():
        for a, b in zip(folds, resumed.views[view], strict=True):
            assert a.n == b.n
            np.testing.assert_allclose(a.gram, b.gram, rtol=1e-5, atol=1e-4)
    with pytest.raises(MomentsError, match="begun with other data or settings"):
        gathered(proto, {"x": x}, Run(batch_size=9), start=half)
    with pytest.raises(MomentsError, match="belong to another model"):
        gathered(mlp(seed=9, widths=(8, 16, 16, 4)), {"x": x}, run, start=half)


def test_progress_tells_samples():
    calls = []
    x = np.ones((100, 8), np.float32)
    gathered(mlp(), {"x": x}, Run(), progress=lambda *call: calls.append(call))
    assert calls[-1] == (100, 100, "collecting")
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    calls.clear()
    feeds = [{"x": x}]
    gathered(mlp(), (f for f in feeds), Run(), progress=lambda *call: calls.append(call))
    assert calls == [(100, None, "collecting")]


def test_one_pass_is_all_a_generator_gives():
    x = np.ones((10, 8), np.float32)
    proto = mlp(widths=(8, 16, 16, 4))
    with pytest.raises(DataError, match="read only once.*--memory"):
        gathered(proto, ({"x": x} for _ in range(3)), Run(memory=200_000))


def test_infinity_on_the_way_names_node_and_batch():
    proto, x = mlp(), np.ones((100, 8), np.float32)
    x[70:] = 3e38
    with pytest.raises(DataError) as caught:
        gathered(proto, {"x": x})
    text = str(caught.value)
    assert "tensor 'h1' holds NaN or infinity" in text
    assert "batch from sample" in text and "input of node 'mm1'" in text


def test_large_but_finite_values_are_summed():
    proto, x = mlp(scale=1e-20), np.full((40, 8), 1e25, np.float32)
    moments = gathered(proto, {"x": x})
    gram = sum(f.gram for f in moments.views[next(iter(moments.views))])
    np.testing.assert_allclose(gram, 40 * 1e50, rtol=1e-5)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_float_types(dtype):
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weight = RNG.standard_normal((8, 4)).astype(kind)
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
        [info("x", ["n", 8], dtype)],
        [info("y", ["n", 4], dtype)],
        [constant("w", weight)],
    )
    x = (200 * RNG.standard_normal((50, 8))).astype(kind)
    check(gathered(proto, {"x": x}), proto, {"x": x})


def test_a_step_that_fails_names_its_batch():
    proto = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], "mm"),
            helper.make_node("Reshape", ["m", "shape"], ["y"], "reshape"),
        ],
        [info("x", ["n", 4])],
        [info("y", [7, 4])],
        [constant("w", np.eye(4, dtype=np.float32)), constant("shape", np.array([7, 4]))],
    )
    with pytest.raises(ModelError, match="batch from sample 0: onnxruntime cannot run the model"):
        gathered(proto, {"x": np.ones((64, 4), np.float32)})


def test_a_view_that_does_not_fit_its_weight():
    opened = load(mlp())
    source = open_data({"x": np.ones((4, 8), np.float32)}, opened.inputs, Run())
    with pytest.raises(ModelError, match="input of node 'mm0': tensor 'x' has rows of 8.*takes 9"):
        collect(opened, source, Run(), views={View(MAIN, "x", Axis()): 9})


MEMORY = """
import resource, sys
import numpy as np
sys.path.insert(0, {tests!r})
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.sites import Selection
from onnxrank.runtime.collect import collect
from onnxrank.runtime.data import open_data
from onnxrank.runtime.session import Run
model = load({model!r})
run = Run(batch_size=8, threads=1, samples=int(sys.argv[1]))
views = {{s.view: s.d_in for s in find_sites(model, Selection())[0]}}
collect(model, open_data({data!r}, model.inputs, run), run, views=views)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("save", [np.savez_compressed, None])
def test_memory_does_not_grow_with_samples(tmp_path, save):
    onnx.save(mlp(widths=(512, 768, 256)), tmp_path / "m.onnx")
    x = np.random.default_rng(0).integers(-9, 9, (16_000, 512)).astype(np.float32)
    data = tmp_path / ("d.npy" if save is None else "d.npz")
    np.save(data, x) if save is None else save(data, x=x)
    code = MEMORY.format(tests="", model=str(tmp_path / "m.onnx"), data=str(data))
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, n], capture_output=True, check=True).stdout)
        for n in ("2000", "16000")
    ]
    assert peaks[1] <= 1.02 * peaks[0], peaks
