"""Error of every layer at equal parameters: our factor pairs against those of others.

    python tools/bench/layer_error.py MODEL.onnx --data DATA [--mask INPUT] [--samples N]

For every weight and every share of its parameters, the relative error of its output (in the
Frobenius norm) on the rows it was fitted to. `centred` is for maps whose bias can take a shift.
"""

from __future__ import annotations

from typing import Any

import common

# Errors closer than this, relative to the output, are rounding.
_EQUAL = 1e-7


def study(options: Any, shares: list[float]) -> tuple[list[list[str]], str]:
    """A row for each method, and how often ours was not the best."""
    import math
    from statistics import fmean

    import numpy as np
    from forms import OTHERS, OURS, factorizable, one_ratio

    from onnxrank.graph.model import load
    from onnxrank.graph.weights import weight_matrix
    from onnxrank.linalg.factorize import layer_error
    from onnxrank.runtime.session import Run
    from onnxrank.stages.collect import collect
    from onnxrank.stages.measure import measure, unit_moment

    run = Run(provider="cpu", threads=options.threads, samples=options.samples, mask=options.mask)
    model = load(options.model)
    moments = collect(model, options.data, run=run)
    measured = measure(
        model, moments, energy=0.99, centered=False, selection=None, progress=lambda *_: None
    )
    methods = {**OTHERS, **OURS}
    errors: dict[tuple[str, float], list[float]] = {(m, s): [] for m in methods for s in shares}
    worse = 0
    units = factorizable(measured)
    for unit in units:
        site = unit.sites[0]
        weight, moment = weight_matrix(model, site), unit_moment(moments, unit)
        whole = float(np.sum(weight * (moment.gram @ weight)))
        for share in shares:
            rank = one_ratio(site.parameters, site.groups, site.d_in, site.d_out, share)
            here = {}
            for name, cut in methods.items():
                lost = layer_error(weight, cut(weight, moment, rank), moment)
                here[name] = math.sqrt(lost / whole) if whole > 0 else 0.0
                errors[name, share].append(here[name])
            best = min(here[name] for name in OTHERS)
            worse += min(here["optimal"], here["centred"]) > best + _EQUAL
            worse += here["optimal"] > best + _EQUAL
    rows = [[m, *(f"{fmean(errors[m, s]):.4f}" for s in shares)] for m in methods]
    cells = 2 * len(units) * len(shares)
    said = (
        f"{options.model.stem}: {len(units)} weights, {moments.data.samples} samples. Ours worse "
        f"than the best of the others by more than rounding ({_EQUAL:g} of the output): {worse} of "
        f"{cells} comparisons (optimal alone, and the better of both)."
    )
    return rows, said


def main() -> None:
    parser = common.parser(__doc__)
    common.add_model(parser)
    parser.add_argument("--shares", default="0.75,0.5,0.35,0.25,0.1")
    options = parser.parse_args()
    common.limit(options.threads)
    shares = [float(share) for share in options.shares.split(",")]
    rows, said = study(options, shares)
    head = ["mean relative error at", *(f"{share:.0%}" for share in shares)]
    common.record(options, "Layer error at equal parameters", said, common.table(head, rows))


if __name__ == "__main__":
    main()
