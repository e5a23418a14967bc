"""Time of analyze's decompositions, over one LAPACK eigendecomposition of every distinct matrix.

    python tools/bench/decompose.py MODEL.onnx --data DATA [--mask INPUT] [--samples N] [--rounds 5]

The matrices are the second moments of every distinct input and of every weight's outputs, each of
all rows and of both folds, in float64. `analyze` also reads the weights and forms the outputs'
moments, so it does more than the decompositions that it is compared with: their eigenvalues alone,
and with eigenvectors.
"""

from __future__ import annotations

from typing import Any

import common


def study(options: Any) -> tuple[list[list[str]], str]:
    """A row for each side."""
    from statistics import median

    from scipy.linalg import eigh

    from onnxrank.graph.model import load
    from onnxrank.graph.weights import weight_matrix
    from onnxrank.linalg.spectrum import compact, output_gram
    from onnxrank.runtime.session import Run
    from onnxrank.stages.collect import collect
    from onnxrank.stages.measure import measure, unit_folds, unit_views

    run = Run(provider="cpu", threads=options.threads, samples=options.samples, mask=options.mask)
    model = load(options.model)
    moments = collect(model, options.data, run=run)

    def analyze() -> Any:
        return measure(
            model, moments, energy=0.99, centered=False, selection=None, progress=lambda *_: None
        )

    matrices, inputs = [], set()
    for unit in analyze().survey.units:
        weight = compact(weight_matrix(model, unit.sites[0]))
        first, second = unit_folds(moments, unit)
        parts = [fold.gram for fold in (first + second, first, second)]
        if unit_views(unit) not in inputs:
            inputs.add(unit_views(unit))
            matrices += [one for part in parts for one in part]
        matrices += [one for part in parts for one in output_gram(weight, part)]

    def decompose(values: bool) -> None:
        for matrix in matrices:
            eigh(matrix, eigvals_only=values, driver="evd")

    sides = {
        "analyze": analyze,
        "eigenvalues": lambda: decompose(True),
        "eigenvectors": lambda: decompose(False),
    }
    times = common.alternate(sides, options.rounds)
    names = {
        "analyze": "analyze: read, form, decompose, choose",
        "eigenvalues": "LAPACK, eigenvalues of the same matrices",
        "eigenvectors": "LAPACK, eigenvalues and eigenvectors",
    }
    rows = [
        [names[side], f"{median(times[side]):.2f}", f"{common.ratio(times, 'analyze', side):.2f}"]
        for side in sides
    ]
    sizes = sorted({len(matrix) for matrix in matrices})
    said = f"{options.model.stem}: {len(matrices)} matrices of {sizes[0]} to {sizes[-1]} rows."
    return rows, said


def main() -> None:
    parser = common.parser(__doc__)
    common.add_model(parser)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    common.limit(options.threads)
    rows, said = study(options)
    head = ["", "CPU s", "analyze over it"]
    common.record(options, "Decompositions", said, common.table(head, rows))


if __name__ == "__main__":
    main()
