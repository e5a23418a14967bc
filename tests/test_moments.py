import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest

from onnxrank.errors import MomentsError, WriteError
from onnxrank.graph.scopes import MAIN, Scope
from onnxrank.graph.sites import View
from onnxrank.linalg.gram import SecondMoment
from onnxrank.linalg.layout import Axis, Patches
from onnxrank.moments import Cursor, DataInfo, Moments, merge

VIEWS = (
    View(MAIN, "x", Axis()),
    View(MAIN, "image", Patches((3, 3), (1, 2), (1, 1, 0, 0), (1, 1), 2, "SAME_UPPER")),
    View(Scope((("loop", "body"), ("if", "then_branch"))), "é/h", Axis((1, -1), 2)),
)


def moments(seed=0, part="part", **changes):
    rng = np.random.default_rng(seed)

    def moment(groups, d):
        return SecondMoment.of(rng.standard_normal((groups, 10 + seed, d)))

    views = {
        view: (moment(view.layout.groups, 4 + k), moment(view.layout.groups, 4 + k))
        for k, view in enumerate(VIEWS)
    }
    data = DataInfo("calib.npz", 20 + seed, 1.5, "cpu", parts=(part,))
    return replace(Moments("abc", views, data), **changes)


def same(first, second):
    assert list(first.views) == list(second.views)
    for view in first.views:
        for a, b in zip(first.views[view], second.views[view], strict=True):
            assert a.n == b.n
            np.testing.assert_array_equal(a.sum, b.sum)
            np.testing.assert_array_equal(a.gram, b.gram)


def test_round_trip(tmp_path):
    cursor = Cursor("settings", dict.fromkeys(VIEWS, 3))
    for before in (moments(), moments(cursor=cursor)):
        before.save(tmp_path / "m")
        after = Moments.load(str(tmp_path / "m"))
        same(before, after)
        assert (after.model_sha256, after.data, after.cursor) == ("abc", before.data, before.cursor)
    assert not after.complete and os.listdir(tmp_path) == ["m"]


def test_the_same_moments_give_the_same_bytes(tmp_path):
    moments().save(tmp_path / "a")
    moments().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_merge_adds():
    a, b = moments(1, "1"), moments(2, "2")
    both = merge([a, b])
    for view in VIEWS:
        for fold in (0, 1):
            one, two = a.views[view][fold], b.views[view][fold]
            assert both.views[view][fold].n == one.n + two.n
            np.testing.assert_array_equal(both.views[view][fold].gram, one.gram + two.gram)
    assert both.data == DataInfo("calib.npz", 43, 3.0, "cpu", parts=("1", "2"))
    again = merge([both, moments(3, "3")])
    assert again.data.parts == ("1", "2", "3")


def test_merge_refuses_what_does_not_belong_together():
    other_views = {view: moments().views[view] for view in VIEWS[:1]}
    shapes = {view: moments().views[VIEWS[2]] for view in VIEWS}
    cases = {
        "belong to another model": moments(1, "1", model_sha256="xyz"),
        "hold other layers": moments(1, "1", views=other_views),
        "differ in shape": moments(1, "1", views=shapes),
        "unfinished": moments(1, "1", cursor=Cursor("", {})),
        "same data would be added twice": moments(1),
    }
    for message, other in cases.items():
        with pytest.raises(MomentsError, match=message):
            merge([moments(), other])
    with pytest.raises(MomentsError, match="no moments"):
        merge([])


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "m"
    moments().save(path)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    flipped = bytearray(whole)
    flipped[header + 100] ^= 1
    for content, message in (
        (bytes(flipped), "its checksum does not match"),
        (whole[: len(whole) // 2], "no moments file, or it is damaged"),
        (whole[:4], "no moments file, or it is damaged"),
        (b"", "no moments file, or it is damaged"),
        (b"text" * 100, "no moments file, or it is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(MomentsError, match=message) as caught:
            Moments.load(path)
        assert str(caught.value).startswith(str(path))


def edited(path, **changes):
    """Rewrite the metadata of a moments file."""
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    record = json.loads(header["__metadata__"]["onnxrank"]) | changes
    header["__metadata__"] = {"onnxrank": json.dumps(record)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])


def test_other_formats_are_named(tmp_path):
    moments().save(tmp_path / "m")
    edited(tmp_path / "m", schema="onnxrank.moments/9")
    with pytest.raises(MomentsError, match="holds onnxrank.moments/9, not onnxrank.moments/1"):
        Moments.load(tmp_path / "m")
    moments().save(tmp_path / "m")
    edited(tmp_path / "m", rows=[[1, 1]] * 3)
    with pytest.raises(MomentsError, match="is damaged"):
        Moments.load(tmp_path / "m")
    with pytest.raises(MomentsError, match="cannot be read: No such file"):
        Moments.load(tmp_path / "none")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    with pytest.raises(WriteError, match="cannot be written"):
        moments().save(tmp_path / "none" / "m")
    moments().save(tmp_path / "m")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError):
        moments().save(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "m"]
