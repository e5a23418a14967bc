"""The paper's own choice of energies (arXiv 2407.04797): the smallest that a layer alone can bear.

    python tools/bench/criterion.py MODEL.onnx --data DATA --eval DATA [--mask INPUT] [--loss 0.001]

For each layer the smallest of twelve energies, .8 to .9999, at which the network with only this
layer projected loses at most --loss on half of the evaluation samples (accuracy where there are
labels, else agreement, else relative error); found by bisection. Then all layers are projected at
once, without training, and judged on the other half.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import common
from paper import _kept, add_options

STEPS = 12


def study(options: Any) -> tuple[list[list[str]], str]:
    """Search layer by layer; a row for all layers together."""
    import numpy as np

    from onnxrank.graph.model import load
    from onnxrank.graph.override import override
    from onnxrank.runtime.data import holdout, open_data
    from onnxrank.runtime.replay import Replay
    from onnxrank.runtime.session import Run
    from onnxrank.stages.collect import collect
    from onnxrank.stages.compensate import site_feeds
    from onnxrank.stages.judge import Judge
    from onnxrank.stages.measure import measure
    from onnxrank.stages.plan import decide
    from onnxrank.stages.tasks import tasks

    run = Run(provider="cpu", threads=options.threads, samples=options.samples,
              rows=options.rows or None, mask=options.mask)  # fmt: skip
    model = load(options.model)
    moments = collect(model, open_data(str(options.data), model.inputs, run), run=run)
    energies = [float(1 - gap) for gap in np.geomspace(0.2, 1e-4, STEPS)]
    found = [
        measure(
            model, moments, energy=energy, centered=False, selection=None, progress=lambda *_: None
        )  # fmt: skip
        for energy in energies
    ]
    plans = [
        decide(one, method="projection", align=1, allow_unstable=True, force=False)
        for one in found
    ]  # fmt: skip
    units = {unit.name: unit for unit in found[0].survey.units}
    free = [u for u in units.values() if all(site.hold is None for site in u.sites)]
    replay = Replay(override(model, [site for unit in free for site in unit.sites]), run)
    held = Run(provider="cpu", threads=options.threads)
    searched, other = holdout(
        open_data(str(options.eval), model.inputs, held), share=1 / 2, most=4096
    )
    judges = [Judge(replay, part.batches()) for part in (searched, other) if part is not None]

    def feeds(plan: Any) -> Any:
        factors = {
            name: part
            for task in tasks(model, units, plan, moments)
            for name, part in task.block.split(task.plain).items()
        }
        return site_feeds(replay, [units[name] for name in factors], factors)

    def alone(name: str, step: int) -> float:
        """What is lost with one layer projected; nothing where its rank does not pay."""
        entry = next(e for e in plans[step].units if e.name == name)
        if entry.form is None:
            return 0.0
        return judges[0].loss(feeds(replace(plans[step], units=(entry,)))).value

    entries, utilization = [], []
    for place, name in enumerate(units):
        low, high = 0, STEPS - 1
        while low < high and units[name] in free:
            step = (low + high) // 2
            low, high = (low, step) if alone(name, step) <= options.loss else (step + 1, high)
        entries.append(plans[high].units[place])
        utilization.append(found[high].ranks[name].rank / units[name].sites[0].full_rank)
    plan = replace(plans[0], units=tuple(entries))
    loss = judges[1].loss(feeds(plan))
    row = [f"{options.loss:g}", f"{np.mean(utilization):.3f}", f"{_kept(plan):.3f}"]
    said = f"{options.model.stem}: judged on {judges[1].samples} samples by {loss.kind}."
    return [[*row, f"{loss.value:+.4f}"]], said


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    add_options(parser)
    parser.add_argument("--loss", type=float, default=0.001, help="that a layer may cost alone")
    options = parser.parse_args()
    common.limit(options.threads)
    rows, said = study(options)
    head = ["a layer may lose", "MLU", "parameters kept", "all together lose"]
    common.record(options, "The paper's criterion, layer by layer", said, common.table(head, rows))


if __name__ == "__main__":
    main()
