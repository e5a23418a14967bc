import os
import zipfile

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image

from onnxrank.errors import DataError
from onnxrank.graph.model import TensorInfo
from onnxrank.runtime.data import holdout, named_preprocess, open_data
from onnxrank.runtime.session import Run

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
X = TensorInfo("x", FLOAT, ("n", 3))
IDS = TensorInfo("ids", INT64, ("n", "t"))
RUN = Run(batch_size=4)


def floats(n, *shape, dtype=np.float32):
    count = n * int(np.prod(shape))
    return np.arange(count, dtype=dtype).reshape(n, *shape)


def gathered(source, name="x"):
    """Samples in their order, after checking what every source promises."""
    batches = list(source.batches())
    again = list(source.batches())
    assert [b.start for b in batches] == [b.start for b in again]
    assert len({b.start for b in batches}) == len(batches)
    order = np.argsort([b.start for b in batches])
    return np.concatenate([batches[k].feeds[name] for k in order]), batches


def test_npz_comes_in_order_in_two_folds(tmp_path):
    np.savez(tmp_path / "d.npz", x=floats(64, 3), __label__=np.arange(64))
    source = open_data(tmp_path / "d.npz", [X], RUN)
    values, batches = gathered(source)
    assert (values == floats(64, 3)).all()
    assert [b.fold for b in batches] == [0, 1] * 8
    assert source.samples == 64 and source.labelled and not source.meaningless
    assert all((b.labels == np.arange(b.start, b.start + 4)).all() for b in batches)
    assert source.description == str(tmp_path / "d.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_stored_and_deflated_members(tmp_path, save):
    save(tmp_path / "d.npz", x=floats(50, 3), ids=np.ones((50, 7), np.int64))
    source = open_data(str(tmp_path / "d.npz"), [X, IDS], RUN)
    batches = list(source.batches())
    assert sum(b.size for b in batches) == 50
    assert sorted(v for b in batches for v in b.feeds["x"][:, 0]) == list(floats(50, 3)[:, 0])
    assert all(b.feeds["ids"].shape == (b.size, 7) for b in batches)


def test_fortran_order_and_npy(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(floats(20, 3)))
    np.save(tmp_path / "c.npy", floats(20, 3))
    for name in ("f.npy", "c.npy"):
        rows = [v for b in open_data(tmp_path / name, [X], RUN).batches() for v in b.feeds["x"]]
        assert sorted(map(tuple, rows)) == sorted(map(tuple, floats(20, 3)))


def test_folder_of_files_and_of_inputs(tmp_path):
    (tmp_path / "parts").mkdir()
    for k in range(3):
        np.savez(tmp_path / "parts" / f"{k}.npz", x=floats(10, 3) + 30 * k)
    values, batches = gathered(open_data(tmp_path / "parts", [X], Run(batch_size=1)))
    assert (values == floats(30, 3)).all()
    (tmp_path / "inputs").mkdir()
    np.save(tmp_path / "inputs" / "x.npy", floats(10, 3))
    np.save(tmp_path / "inputs" / "ids.npy", np.ones((10, 2), np.int64))
    batch = next(open_data(tmp_path / "inputs", [X, IDS], RUN).batches())
    assert set(batch.feeds) == {"x", "ids"}


def test_arrays_in_memory():
    values, _ = gathered(open_data({"x": floats(10, 3)}, [X], Run(batch_size=1)))
    assert (values == floats(10, 3)).all()


def test_sources_stay_within_a_fold(tmp_path):
    groups = np.arange(60) % 7
    np.savez(tmp_path / "d.npz", x=floats(60, 3), __group__=groups)
    source = open_data(tmp_path / "d.npz", [X], RUN)
    seen = {0: set(), 1: set()}
    batches = list(source.batches())
    for batch in batches:
        seen[batch.fold] |= set(groups[(batch.feeds["x"][:, 0] // 3).astype(int)])
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 7
    assert sum(b.size for b in batches) == 60 and max(b.size for b in batches) == 4
    rest, held = holdout(source)
    kept, out = (
        {int(groups[int(v // 3)]) for b in s.batches() for v in b.feeds["x"][:, 0]}
        for s in (rest, held)
    )
    assert not kept & out and out


def test_fixed_batch(tmp_path):
    fixed = TensorInfo("x", FLOAT, (8, 3))
    np.savez(tmp_path / "d.npz", x=floats(40, 3))
    values, batches = gathered(open_data(tmp_path / "d.npz", [fixed], RUN))
    assert {b.size for b in batches} == {8} and (values == floats(40, 3)).all()
    limited = open_data(tmp_path / "d.npz", [fixed], Run(samples=20))
    assert limited.samples == 16 and sum(b.size for b in limited.batches()) == 16
    np.savez(tmp_path / "odd.npz", x=floats(43, 3))
    with pytest.raises(DataError, match="43 samples do not divide into batches of 8.*3 are left"):
        open_data(tmp_path / "odd.npz", [fixed], RUN)
    one = TensorInfo("x", FLOAT, (1, 3))
    assert {b.size for b in open_data(tmp_path / "odd.npz", [one], RUN).batches()} == {1}


def test_fixed_batch_joins_the_sources_it_mixes(tmp_path):
    fixed = TensorInfo("x", FLOAT, (4, 3))
    np.savez(tmp_path / "d.npz", x=floats(24, 3), __group__=np.repeat(np.arange(4), 6))
    batches = list(open_data(tmp_path / "d.npz", [fixed], RUN).batches())
    assert [b.fold for b in sorted(batches, key=lambda b: b.start)] == [0, 0, 0, 1, 1, 1]
    np.savez(tmp_path / "m.npz", x=floats(24, 3), __group__=np.arange(24) % 4)
    with pytest.raises(DataError, match="mix all sources.*order the samples by __group__"):
        open_data(tmp_path / "m.npz", [fixed], RUN)


def test_stack_of_complete_feeds(tmp_path):
    scale = TensorInfo("scale", FLOAT, ())
    np.savez(tmp_path / "d.npz", x=floats(6, 5, 3), scale=np.arange(6, dtype=np.float32))
    batches = list(open_data(tmp_path / "d.npz", [X, scale], RUN).batches())
    assert all(b.feeds["x"].shape == (5, 3) and b.feeds["scale"].shape == () for b in batches)
    assert sorted(float(b.feeds["scale"]) for b in batches) == [0, 1, 2, 3, 4, 5]
    # A stacked input makes the others step one sample at a time.
    np.savez(tmp_path / "e.npz", x=floats(6, 3), scale=np.arange(6, dtype=np.float32))
    assert {
        b.feeds["x"].shape for b in open_data(tmp_path / "e.npz", [X, scale], RUN).batches()
    } == {(1, 3)}


def test_strings(tmp_path):
    text = TensorInfo("text", TensorProto.STRING, ("n", 1))
    np.savez(tmp_path / "d.npz", text=np.array([["a"], ["bc"]]))
    batches = list(open_data(tmp_path / "d.npz", [text], RUN).batches())
    assert [b.feeds["text"].tolist() for b in batches] == [[["a"]], [["bc"]]]
    with pytest.raises(DataError, match="'text' is str, but the data are float32"):
        open_data({"text": floats(2, 1)}, [text], RUN)


def test_bfloat16_survives_the_npy_format(tmp_path):
    half = TensorInfo("x", TensorProto.BFLOAT16, ("n", 3))
    np.savez(tmp_path / "d.npz", x=floats(4, 3).astype(ml_dtypes.bfloat16))
    batch = next(open_data(tmp_path / "d.npz", [half], RUN).batches())
    assert batch.feeds["x"].dtype == ml_dtypes.bfloat16
    assert batch.feeds["x"].astype(np.float32).sum() > 0


def test_samples_limit(tmp_path):
    np.savez(tmp_path / "d.npz", x=floats(100, 3))
    source = open_data(tmp_path / "d.npz", [X], Run(samples=30))
    assert source.samples == 30 == sum(b.size for b in source.batches())
    feeds = [{"x": floats(8, 3)} for _ in range(10)]
    source = open_data(feeds, [X], Run(samples=20))
    assert source.samples == 24 == sum(b.size for b in source.batches())


def test_test_data_sets(tmp_path):
    for k in range(12):
        folder = tmp_path / f"test_data_set_{k}"
        folder.mkdir()
        for number, (name, value) in enumerate(
            [("x", floats(2, 3) + k), ("", np.ones((2, k + 1), np.int64))]
        ):
            tensor = numpy_helper.from_array(value, name)
            (folder / f"input_{number}.pb").write_bytes(tensor.SerializeToString())
    batches = list(open_data(tmp_path, [X, IDS], RUN).batches())
    assert [b.feeds["ids"].shape[1] for b in batches] == list(range(1, 13))
    assert [b.fold for b in batches] == [0, 1] * 6
    (tmp_path / "test_data_set_3" / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DataError, match="input_0.pb: it cannot be read"):
        list(open_data(tmp_path, [X, IDS], RUN).batches())
    alone = open_data(tmp_path / "test_data_set_1", [X, IDS], RUN)
    assert len(list(alone.batches())) == 1


def test_loader_functions(tmp_path, monkeypatch):
    (tmp_path / "loader.py").write_text(
        "import numpy as np\n"
        "def load():\n"
        "    for k in range(5):\n"
        "        yield {'x': np.full((2, 3), k, np.float32)}\n"
        "def broken():\n"
        "    yield {'x': np.zeros((2, 3), np.float32)}\n"
        "    raise KeyError('oops')\n"
    )
    source = open_data(f"{tmp_path}/loader.py:load", [X], RUN)
    assert [b.feeds["x"][0, 0] for b in source.batches()] == [0, 1, 2, 3, 4]
    assert len(list(source.batches())) == 5 and source.samples is None
    monkeypatch.syspath_prepend(tmp_path)
    assert len(list(open_data("loader:load", [X], RUN).batches())) == 5
    with pytest.raises(DataError, match=r"loader.py:broken, after feed 0: the loader raised KeyE"):
        list(open_data(f"{tmp_path}/loader.py:broken", [X], RUN).batches())
    with pytest.raises(DataError, match="there is no function 'nothing'"):
        open_data(f"{tmp_path}/loader.py:nothing", [X], RUN)
    with pytest.raises(DataError, match="there is no such file"):
        open_data(f"{tmp_path}/missing.py:load", [X], RUN)
    (tmp_path / "bad.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(DataError, match="cannot be imported: ModuleNotFoundError"):
        open_data(f"{tmp_path}/bad.py:load", [X], RUN)


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, feeds):
        self.feeds = feeds
        self.place = 0

    def get_next(self):
        self.place += 1
        return self.feeds[self.place - 1] if self.place <= len(self.feeds) else None


class Rewindable(Reader):
    def rewind(self):
        self.place = 0


def test_readers_and_generators_know_how_often_they_can_be_read():
    feeds = [{"x": floats(2, 3)} for _ in range(4)]
    once = open_data(Reader(feeds), [X], RUN)
    assert len(list(once.batches())) == 4
    with pytest.raises(DataError, match=r"only once.*rewind\(\)"):
        list(once.batches())
    often = open_data(Rewindable(feeds), [X], RUN)
    assert [len(list(often.batches())) for _ in range(3)] == [4, 4, 4]
    generator = open_data((feed for feed in feeds), [X], RUN)
    assert len(list(generator.batches())) == 4
    with pytest.raises(DataError, match="only once.*pass a list"):
        list(generator.batches())
    function = open_data(lambda: iter(feeds), [X], RUN)
    assert [len(list(function.batches())) for _ in range(2)] == [4, 4]
    assert open_data(feeds, [X], RUN).samples == 8


def test_streams_hold_out_and_shard():
    feeds = [{"x": np.full((1, 3), k, np.float32)} for k in range(32)]

    def numbers(source):
        return [int(b.feeds["x"][0, 0]) for b in source.batches()]

    for data in (feeds, lambda: iter(feeds)):
        source = open_data(data, [X], RUN)
        rest, held = holdout(source)
        assert sorted(numbers(rest) + numbers(held)) == list(range(32))
        assert len(numbers(held)) == 4
        assert {b.fold for b in held.batches()} == {0, 1}
        parts = [numbers(source.shard(k, 3)) for k in (1, 2, 3)]
        assert sorted(sum(parts, [])) == list(range(32))
    assert holdout(open_data(feeds, [X], RUN))[1].samples == 4
    assert holdout(open_data(feeds[:1], [X], RUN))[1] is None
    rest, held = holdout(open_data(feeds[:2], [X], RUN))
    assert numbers(rest) == [0] and numbers(held) == [1]
    with pytest.raises(DataError, match="no shard 4 of 3"):
        source.shard(4, 3)


def test_streams_keep_sources_together():
    feeds = [
        {"x": np.full((2, 3), k, np.float32), "__group__": np.array([k % 5, k % 5])}
        for k in range(20)
    ]
    batches = list(open_data(feeds, [X], RUN).batches())
    for source in range(5):
        assert len({b.fold for b in batches if b.feeds["x"][0, 0] % 5 == source}) == 1
    mixed = [*feeds, {"x": floats(2, 3), "__group__": np.array([0, 1])}]
    with pytest.raises(DataError, match="feed 20: it mixes sources"):
        list(open_data(mixed, [X], RUN).batches())


def test_holdout_of_tables(tmp_path):
    np.savez(tmp_path / "d.npz", x=floats(640, 3))
    source = open_data(tmp_path / "d.npz", [X], RUN)
    rest, held = holdout(source)
    (used, batches), (kept, _) = gathered(rest), gathered(held)
    assert len(kept) == held.samples == 64
    assert not set(used[:, 0]) & set(kept[:, 0]) and len(used) + len(kept) == 640
    by_fold = [sum(b.size for b in batches if b.fold == fold) for fold in (0, 1)]
    assert abs(by_fold[0] - by_fold[1]) <= 32
    assert holdout(open_data({"x": floats(1, 3)}, [X], RUN))[1] is None
    one_source = {"x": floats(64, 3), "__group__": np.zeros(64, int)}
    assert holdout(open_data(one_source, [X], RUN))[1].samples > 0


def test_shards_keep_the_folds(tmp_path):
    np.savez(tmp_path / "d.npz", x=floats(200, 3))
    source = open_data(tmp_path / "d.npz", [X], RUN)
    whole = {float(v): b.fold for b in source.batches() for v in b.feeds["x"][:, 0]}
    parts = [source.shard(k, 3) for k in (1, 2, 3)]
    found = {float(v): b.fold for p in parts for b in p.batches() for v in b.feeds["x"][:, 0]}
    assert found == whole and sum(part.samples for part in parts) == 200
    with pytest.raises(DataError, match="shard 1/9 of 4 samples is empty"):
        open_data({"x": floats(4, 3)}, [X], RUN).shard(1, 9)


def test_random():
    inputs = [IDS, TensorInfo("mask", TensorProto.FLOAT, ("n", 1, "t", "t"))]
    source = open_data("random:10", inputs, RUN)
    batches = list(source.batches())
    assert source.meaningless and source.samples == 10 and [b.size for b in batches] == [4, 4, 2]
    assert batches[0].feeds["mask"].shape == (4, 1, 32, 32)
    assert set(np.unique(batches[0].feeds["ids"])) <= {0, 1}
    again = next(open_data("random:10", inputs, RUN).batches())
    assert (again.feeds["mask"] == batches[0].feeds["mask"]).all()
    fixed = open_data(
        "random:10", [TensorInfo("x", FLOAT, (4, 3)), TensorInfo("s", FLOAT, ())], RUN
    )
    assert [b.size for b in fixed.batches()] == [4, 4, 4]
    with pytest.raises(DataError, match="written random:N"):
        open_data("random:many", [X], RUN)


def bad(data, inputs, run=RUN):
    with pytest.raises(DataError) as caught:
        list(open_data(data, inputs, run).batches())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "d.npz"

    def saved(**arrays):
        np.savez(path, **arrays)
        return path

    assert bad(saved(y=floats(4, 3)), [X]) == (
        f"{path}: 'y' is no input of the model (the inputs are 'x')"
    )
    assert "did you mean 'input_ids'?" in bad(
        saved(input_idz=floats(4, 3)), [TensorInfo("input_ids", FLOAT, ("n", 3))]
    )
    assert "did you mean '__label__'?" in bad(saved(x=floats(4, 3), __labels__=floats(4)), [X])
    assert f"{path}: input 'ids' is missing" in bad(saved(x=floats(4, 3)), [X, IDS])
    assert "input 'x' is float32, but the data are float64" in bad(saved(x=np.ones((4, 3))), [X])
    assert "input 'x' has shape [n, 3], but the data have [4, 5]" in bad(saved(x=floats(4, 5)), [X])
    assert "but the data have [4]" in bad(saved(x=floats(4)), [X])
    assert "but the data have [2, 2, 2, 3]" in bad(saved(x=floats(2, 2, 2, 3)), [X])
    assert "differ in their number of samples: 'x' 4, 'ids' 5" in bad(
        saved(x=floats(4, 3), ids=np.ones((5, 2), np.int64)), [X, IDS]
    )
    assert "'x' is a scalar" in bad(saved(x=np.float32(1)), [X])
    assert "there are no samples" in bad(saved(x=floats(0, 3)), [X])
    broken = floats(40, 3)
    broken[17, 1] = np.nan
    assert bad(saved(x=broken), [X]) == f"{path}, sample 17: input 'x' holds NaN"
    broken[17, 1] = np.inf
    assert "sample 17: input 'x' holds infinity" in bad(saved(x=broken), [X])
    assert "never unpickled" in bad(saved(x=np.array([{}, 1], dtype=object)), [X])
    two = [TensorInfo("x", FLOAT, (4, 3)), TensorInfo("ids", INT64, (2, "t"))]
    assert "different leading dimensions: 'x' 4, 'ids' 2" in bad(
        saved(x=floats(4, 3), ids=np.ones((4, 2), np.int64)), two
    )
    assert "input 's' is no tensor" in bad(saved(s=floats(4, 3)), [TensorInfo("s", 0, None)])


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((500, 3), np.float32))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert bad(path, [X]) == f"{path}: this is no .npz file, or it is truncated"
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    path.write_bytes(flipped)
    assert f"{path}: it cannot be read" in bad(path, [X])
    path.write_bytes(b"")
    assert "no .npz file" in bad(path, [X])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    assert "it cannot be read" in bad(path, [X])
    array = tmp_path / "d.npy"
    np.save(array, floats(100, 3))
    os.truncate(array, 600)
    assert bad(array, [X]) == f"{array}: the array is truncated or damaged"
    array.write_bytes(b"text")
    assert f"{array}: it cannot be read" in bad(array, [X])


def test_other_things_are_refused(tmp_path):
    assert "there is no such file or folder" in bad(tmp_path / "none.npz", [X])
    (tmp_path / "d.csv").write_text("1,2,3")
    assert "data of this kind are not read" in bad(tmp_path / "d.csv", [X])
    (tmp_path / "empty").mkdir()
    assert "the folder holds no data" in bad(tmp_path / "empty", [X])
    np.save(tmp_path / "d.npy", floats(4, 3))
    assert "a .npy file feeds one input" in bad(tmp_path / "d.npy", [X, IDS])
    assert "int is no data" in bad(7, [X])
    assert "a feed is a dict of arrays, not list" in bad([[1, 2]], [X])
    assert "there are no samples" in bad([], [X])
    assert "feed 1: input 'x' holds NaN" in bad(
        [{"x": floats(2, 3)}, {"x": np.full((2, 3), np.nan, np.float32)}], [X]
    )
    assert "feed 0: input 'x' is float32, but the data are float64" in bad(
        [{"x": np.ones((2, 3))}], [X]
    )
    (tmp_path / "mixed").mkdir()
    np.savez(tmp_path / "mixed" / "a.npz", x=floats(4, 3))
    np.savez(tmp_path / "mixed" / "b.npz", x=floats(4, 2, 3))
    assert "b.npz: its arrays differ in kind" in bad(tmp_path / "mixed", [X])


def test_optional_inputs_may_be_left_out(tmp_path):
    inputs = [X, TensorInfo("scale", FLOAT, ("n", 1), optional=True)]
    np.savez(tmp_path / "a.npz", x=floats(4, 3))
    assert set(next(open_data(tmp_path / "a.npz", inputs, RUN).batches()).feeds) == {"x"}
    np.savez(tmp_path / "b.npz", x=floats(4, 3), scale=floats(4, 1))
    assert len(next(open_data(tmp_path / "b.npz", inputs, RUN).batches()).feeds) == 2


def test_images(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "sub").mkdir()
    for k in range(5):
        place = tmp_path / ("sub" if k % 2 else ".") / f"{k}.png"
        Image.fromarray(rng.integers(0, 255, (40 + k, 60, 3), np.uint8)).save(place)
    image = TensorInfo("image", FLOAT, ("n", 3, 32, 32))
    assert "need to be told" in bad(tmp_path, [image])
    source = open_data(tmp_path, [image], RUN, named_preprocess("imagenet"))
    batches = list(source.batches())
    assert source.samples == 5 and sum(b.size for b in batches) == 5
    assert batches[0].feeds["image"].shape[1:] == (3, 32, 32)
    assert batches[0].feeds["image"].dtype == np.float32
    assert -3 < batches[0].feeds["image"].min() < 0
    raw = TensorInfo("image", TensorProto.UINT8, ("n", "h", "w", 3))
    none = named_preprocess("none", resize=(16, 20))
    assert next(open_data(tmp_path, [raw], RUN, none).batches()).feeds["image"].shape[1:] == (
        16,
        20,
        3,
    )
    gray = TensorInfo("image", FLOAT, (1, 1, 8, 8))
    values = [
        b.feeds["image"]
        for b in open_data(tmp_path, [gray], RUN, named_preprocess("none")).batches()
    ]
    assert {v.shape for v in values} == {(1, 1, 8, 8)} and values[0].max() > 1
    assert "leaves the image size open" in _raised(tmp_path, [raw], named_preprocess("none"))
    assert "images feed one input" in _raised(tmp_path, [image, X], named_preprocess("none"))
    assert "a mean and std do not fit" in _raised(
        tmp_path, [raw], named_preprocess("imagenet", resize=(8, 8))
    )
    assert "takes no images" in _raised(tmp_path, [X], named_preprocess("none"))
    (tmp_path / "zz.png").write_bytes(b"no image")
    assert "zz.png: this image cannot be read" in _raised(
        tmp_path, [image], named_preprocess("none")
    )
    with pytest.raises(DataError, match="one of imagenet, none"):
        named_preprocess("vgg")


def _raised(data, inputs, preprocess):
    with pytest.raises(DataError) as caught:
        list(open_data(data, inputs, RUN, preprocess).batches())
    return str(caught.value)


def test_sequences_come_from_loaders():
    sequence = TensorInfo("s", 0, None)
    feeds = [{"s": [floats(2, 3), floats(1, 3)]}]
    batch = next(open_data(feeds, [sequence], RUN).batches())
    assert isinstance(batch.feeds["s"], list) and onnx is not None
