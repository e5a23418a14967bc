"""Einsum: the equations that are one matrix product, and the reasons of the others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .build import assert_full, codes, differ, noise, only, random_pair, run, single, split, tensors

SIZES = dict(a=2, b=3, c=4, d=5, h=3, i=2, j=3, k=4, l=2, n=2, q=3, s=3, t=4, D=6, E=4)

GOOD = [
    ("bsd,de->bse", 1, dict(e=6)),
    ("bsd,dhk->bshk", 1, {}),
    ("bshk,hkd->bsd", 1, {}),
    ("bshk,dhk->bsd", 1, {}),
    ("bsd,dhk->bhsk", 1, {}),
    ("bsd,dhk->bhks", 1, {}),
    ("bsd,dhk->hbks", 1, {}),
    ("de,bsd->bse", 0, dict(e=6)),
    ("ed,sdb->esb", 0, dict(e=6)),
    ("ij,jk->ik", 1, {}),
    ("ij,jk", 1, {}),
    ("ji,jk", 1, {}),
    ("bj,aj", 1, {}),
    ("jb,aj", 0, {}),
    ("i,ij->j", 1, {}),
    ("ij,j->i", 0, {}),
    ("...d,de->...e", 1, dict(e=6)),
    ("b...d,de->b...e", 1, dict(e=6)),
    ("...d,de", 1, dict(e=6)),
    ("d...,de->...e", 1, dict(e=6)),
    ("bd...,de->b...e", 1, dict(e=6)),
    ("b...dk,dkh->b...h", 1, {}),
    ("...hk,dhk->...d", 1, {}),
    (" b s d , d e -> b s e ", 1, dict(e=6)),
    ("bDs,DE->bEs", 1, {}),
]


def einsum(equation, constant, sizes, dots=2, **more):
    sizes = {**SIZES, **sizes}
    left = equation.replace(" ", "").split("->")[0].split(",")
    shapes = []
    for term in left:
        shape = []
        for part in term.replace("...", "."):
            shape += [2, 3][:dots] if part == "." else [sizes[part]]
        shapes.append(tuple(shape))
    names = ["x", "x"]
    names[constant] = "w"
    x = shapes[1 - constant]
    model = single(
        "Einsum", {"x": x}, {"w": noise(*shapes[constant])}, names, equation=equation, **more
    )
    return model, {"x": noise(*x, seed=1)}


@pytest.mark.parametrize("equation,constant,sizes", GOOD)
def test_full_rank_and_shift(equation, constant, sizes):
    for dots in (0, 1, 2):
        model, feeds = einsum(equation, constant, sizes, dots)
        assert_full(model, feeds, 1)
        site = only(model)
        pair = random_pair(site)
        written, _ = split(model, lambda *_, pair=pair: pair)
        # The shift is what an input of ones contributes through a weight of d_in equal rows.
        weight = tensors(model)["w"]
        changed = _tensor(site, pair.product[0], weight)
        spread = _tensor(site, np.tile(pair.bias[0] / site.d_in, (site.d_in, 1)), weight)
        text = equation.replace(" ", "")
        order = (lambda w, x: (w, x)) if constant == 0 else (lambda w, x: (x, w))
        expected = np.einsum(text, *order(changed, feeds["x"]))
        expected = expected + np.einsum(text, *order(spread, np.ones_like(feeds["x"])))
        assert differ([expected.astype(np.float32)], run(written, feeds)) < 1e-5


def _tensor(site, matrix, like):
    shape = [like.shape[p] for p in site.orientation.perm]
    return matrix.reshape(shape).transpose(np.argsort(site.orientation.perm)).astype(np.float64)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_product(data):
    """Letters in any order in every term, on either side."""
    outer = data.draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3))
    inner = data.draw(st.lists(st.sampled_from("ijk"), unique=True, min_size=1, max_size=2))
    made = data.draw(st.lists(st.sampled_from("dhn"), unique=True, min_size=1, max_size=2))
    shuffle = lambda letters: "".join(data.draw(st.permutations(letters)))  # noqa: E731
    x, w, y = shuffle(outer + inner), shuffle(inner + made), shuffle(outer + made)
    constant = data.draw(st.sampled_from([0, 1]))
    left = f"{w},{x}" if constant == 0 else f"{x},{w}"
    equation = left + (f"->{y}" if data.draw(st.booleans()) else "")
    model, feeds = einsum(equation, constant, {})
    assert_full(model, feeds, 1)


BAD = {
    "bsd,d->bsd": "einsum",
    "bsd,d->bs": "einsum",
    "bsd,bde->bse": "einsum",
    "bsd,ds->bs": "einsum",
    "bsd,de->be": "einsum",
    "bsd,de->bs": "einsum",
    "bsd,de->b": "einsum",
    "bss,se->be": "einsum",
    "bsd,ddd->bs": "einsum",
    "bsd,...e->bsde": "einsum",
    "bsd,d...e->bs...e": "einsum",
    "d,de->ee": "einsum",
    "...d,de->e": "einsum",
    "...d,de->e...": "einsum",
    "bsd->bds": "einsum",
    "bsd,de,ef->bsf": "einsum",
    "": "einsum",
    "->": "einsum",
    ",": "einsum",
    "bsd,de->bse->": "einsum",
    "bsd,de->bsz": "einsum",
    "b.d,de->b.e": "einsum",
    "b....d,de->b....e": "einsum",
    "bs1,1e->bse": "einsum",
    "bs\u00e9,\u00e9e->bse": "einsum",
}


@pytest.mark.parametrize("equation", BAD)
def test_reasons(equation):
    shape = (3, 3) if "ddd" not in equation else (3, 3, 3)
    model = single("Einsum", {"x": None}, {"w": noise(*shape)}, ["x", "w"], equation=equation)
    assert codes(model) == {"n": BAD[equation]}


def test_reasons_beyond_the_equation():
    w = noise(3, 3)
    assert codes(single("Einsum", {"x": (3, 3)}, {"w": w}, ["w", "w"], equation="ij,jk->ik")) == {
        "n": "constant_result"
    }
    assert codes(single("Einsum", {"x": (3, 3)}, {}, ["x", "x"], equation="ij,jk->ik")) == {
        "n": "no_constant_weight"
    }
    assert codes(single("Einsum", {"x": (3, 3)}, {"w": w}, ["x", "w"], equation="ij,jkl->ikl")) == {
        "n": "einsum"
    }
    assert codes(single("Einsum", {"x": (3, 3)}, {"w": w}, ["x", "w"], equation=3))["n"] in (
        "einsum",
        "damaged",
    )
    assert codes(single("Einsum", {"x": (3, 3)}, {"w": w}, ["x", "w"]))["n"] == "einsum"


def test_all_letters_used():
    """No letter is left for the rank."""
    import string

    data = string.ascii_letters[:51]
    equation = f"{data},{data[-1]}Z->{data[:-1]}Z"
    model = single("Einsum", {"x": None}, {"w": noise(3, 3)}, ["x", "w"], equation=equation)
    assert codes(model) == {"n": "einsum"}


def test_broadcast_of_a_contracted_axis():
    """An axis of one entry that the weight stretches is no row of the weight's length."""
    model = single("Einsum", {"x": (2, 1)}, {"w": noise(3, 4)}, ["x", "w"], equation="ij,jk->ik")
    assert codes(model) == {"n": "shape"}
