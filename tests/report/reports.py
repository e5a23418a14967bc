"""Made-up reports of any size: layers whose spectra fall like those of real ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxrank.linalg.spectrum import rank_by_energy
from onnxrank.linalg.thin import thinned
from onnxrank.results import (
    Comparison,
    DataReport,
    Frontier,
    FrontierPoint,
    ModelInfo,
    OutputError,
    Pair,
    Plan,
    PlanEntry,
    Report,
    SiteReport,
    SkipReport,
    UnitReport,
)

HOSTILE = "</script><img src=x onerror=alert(1)>"


def spectrum(rng: np.random.Generator, d: int, used: float) -> np.ndarray:
    """Eigenvalues of which about `used` of the directions hold much."""
    k = np.arange(d)
    values = np.exp(-8 * k / (used * d)) + 1e-4 * np.exp(-4 * k / d) + 1e-8
    return np.sort(values * np.exp(0.1 * rng.standard_normal(d)))[::-1]


def layer(i: int, d_in: int, d_out: int, used: float, energy: float = 0.99) -> SiteReport:
    """One measured layer."""
    rng = np.random.default_rng(i)
    inputs, outputs = spectrum(rng, d_in, used), spectrum(rng, d_out, used)
    k_in, k_out = rank_by_energy(inputs, energy), rank_by_energy(outputs, energy)
    rank = min(k_in, k_out)
    settled = i % 7 != 3
    name = HOSTILE if i == 5 else f"/model/stage{i // 12}/block{i % 12 // 3}/dense{i % 3}/MatMul"
    pair = rank * (d_in + d_out)
    return SiteReport(
        name=name,
        op=("MatMul", "Gemm", "Conv")[i % 3],
        weight=f"w{i}",
        scope="main",
        d_in=d_in,
        d_out=d_out,
        groups=1,
        factorizable=i % 11 != 10,
        reason=None if i % 11 != 10 else "its weight is also a table",
        parameters=d_in * d_out,
        macs=16 * d_in * d_out,
        rows=20_000,
        rows_per_dimension=20_000 / d_in,
        k_in=k_in,
        k_out=k_out,
        rank=rank,
        rank_corrected=min(rank + (0 if settled else max(rank // 6, 1)), min(d_in, d_out)),
        utilization=rank / min(d_in, d_out),
        energy=energy,
        factorized_parameters=pair,
        worthwhile=pair < d_in * d_out,
        rank_stable=settled,
        rows_wanted=0 if settled else 30_000,
        spectrum_in=thinned(inputs),
        spectrum_out=thinned(outputs),
    )


def analysis(layers: int = 36, width: int = 384, energy: float = 0.99) -> Report:
    """An analysis, as `analyze` gives it."""
    wave = 0.5 + 0.5 * np.sin(np.arange(layers) / 5)
    uses = 0.25 + 1.6 * wave * (1 - 0.6 * np.arange(layers) / layers)
    sites = tuple(
        layer(i, width, width * (4 if i % 3 == 1 else 1), float(uses[i]), energy)
        for i in range(layers)
    )
    inside = sum(site.parameters for site in sites)
    heads = UnitReport("/model/attention", "heads", (sites[0].name, sites[1].name), 32, 17, 17 / 32)
    return Report(
        model=ModelInfo(
            "models/made up.onnx", "ab" * 32, "a 1", 17, inside + inside // 8, 4 * inside, inside
        ),
        data=DataReport("data/made up.npz", 1024, 20_000, "cpu", 12.5),
        settings={"include": [], "exclude": ["head*"], "energy": energy, "centered": False},
        mean_layer_utilization=float(np.mean([site.utilization for site in sites])),
        mean_layer_utilization_corrected=float(
            np.mean([site.rank_corrected / min(site.d_in, site.d_out) for site in sites])
        ),
        sites=sites,
        units=tuple(
            UnitReport(s.name, "weight", (s.name,), min(s.d_in, s.d_out), s.rank, s.utilization)
            for s in sites
        )
        + (heads,),
        skipped=tuple(
            SkipReport(f"/model/embed{i}", "Gather", "main", 1000 * i, "lookup", "it is a table")
            for i in range(3)
        )
        + tuple(
            SkipReport(f"/model/dw{i}", "Conv", "main", 9 * 64, "depthwise", f"{64 + i} groups")
            for i in range(14)
        ),
        notes=("a note <b>with</b> & signs",),
    )


def planned(report: Report) -> Report:
    """With a plan that splits what pays."""
    entries = []
    for site in report.sites:
        pays = bool(site.factorizable and site.worthwhile and site.rank_stable)
        rank = -(-(site.rank or 0) // 8) * 8
        entries.append(
            PlanEntry(
                name=site.name,
                kind="weight",
                sites=(site.name,),
                form="centered" if pays else None,
                rank=rank if pays else None,
                kept=None if pays else f"does not pay at rank {rank}",
                parameters=site.parameters,
                factorized_parameters=rank * (site.d_in + site.d_out) if pays else site.parameters,
                expected_relative_error=0.02 if pays else None,
            )
        )
    plan = Plan("ab" * 32, {**report.settings, "method": "auto"}, 0.5, tuple(entries))
    return replace(report, plan=plan, settings=plan.settings)


def compressed(report: Report, error: float = 0.011) -> Report:
    """With plan, comparison and frontier, as `compress` gives it."""
    found = planned(report)
    assert found.plan is not None
    before = report.model.parameters
    after = before - sum(e.parameters - e.factorized_parameters for e in found.plan.units)
    points = tuple(
        FrontierPoint(
            size=float(size),
            predicted=float(0.3 * np.exp(-6 * (size - 0.3))),
            measured=float(0.33 * np.exp(-5.6 * (size - 0.3))) if i % 2 == 0 else None,
            chosen=i == 4,
            label=f"price {i}",
        )
        for i, size in enumerate(np.linspace(0.3, 1, 12))
    )
    return replace(
        found,
        comparison=comparison(before, after, error),
        frontier=Frontier("share of the weights", "relative error", points, 0.05),
    )


def comparison(before: int, after: int, error: float = 0.011) -> Comparison:
    """Two models on held-out data."""
    return Comparison(
        data=DataReport("data/held out.npz", 256, 256, "cpu", 0.5),
        outputs={
            "logits": OutputError(0.25, error, 0.9999, 40.0),
            "embedding <2>": OutputError(0.5, error / 2, 0.99995, None),
        },
        top1_agreement=1 - error / 2,
        accuracy=None,
        parameters=Pair.of(before, after),
        macs=Pair.of(16 * before, 16 * after),
        bytes=Pair.of(4 * before, 4 * after),
        latency_ms=Pair.of(4.2, 3.1),
        latency_samples=32,
        skipped_outputs={"names": "it holds text"},
    )


def inspection(report: Report) -> Report:
    """The same model before any data were seen."""
    names = ("rows rows_per_dimension k_in k_out rank rank_corrected utilization energy").split()
    names += "factorized_parameters worthwhile rank_stable rows_wanted".split()
    empty = dict.fromkeys(names) | {"spectrum_in": (), "spectrum_out": ()}
    return replace(
        report,
        data=None,
        settings={"include": [], "exclude": []},
        mean_layer_utilization=None,
        mean_layer_utilization_corrected=None,
        sites=tuple(replace(site, **empty) for site in report.sites),  # type: ignore[arg-type]
        units=(),
    )
