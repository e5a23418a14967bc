"""The headline: what can go at what cost, or that nothing can, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxrank.report import text
from onnxrank.report.savings import Savings, samples_wanted
from onnxrank.results import Comparison, Report

# A saving below this share of the model is not worth a headline.
_WORTH = 0.01
# What is lost here is more than a smaller model is usually worth.
_AGREEMENT, _ACCURACY, _ERROR = 0.95, 0.02, 0.2

RANDOM = (
    "Random data. Ranks of made-up inputs say nothing about this model on real ones: "
    "not how much it uses, not what can go. Use them to try the tool, and for nothing else."
)


@dataclass(frozen=True)
class Verdict:
    """The headline, what is said below it, and what must be said louder.

    Attributes
    ----------
    headline : str
    sentences, warnings : tuple of str
    harmful : bool
        More is lost than a smaller model is usually worth.
    """

    headline: str
    sentences: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    harmful: bool = False


def judge(report: Report, found: Savings) -> Verdict:
    """The verdict on a report."""
    verdict = _judge(report, found)
    sources = [report.data, report.comparison.data if report.comparison else None]
    if any(source is not None and source.meaningless for source in sources):
        return Verdict(
            "Meaningless: measured on random data",
            (f"With real data this line might read: “{verdict.headline}”.", *verdict.sentences),
            (RANDOM, *verdict.warnings),
        )
    return verdict


def judge_comparison(comparison: Comparison) -> Verdict:
    """The verdict on a comparison alone."""
    ratio = comparison.parameters.ratio
    if ratio is None or ratio == 1:
        start = "The candidate is as large as the original"
    elif ratio < 1:
        start = f"The candidate has {text.rough(1 - ratio)} fewer weights"
    else:
        start = f"The candidate has {text.rough(ratio - 1)} more weights"
    effect, harmful = _effect(comparison)
    verdict = Verdict(f"{start}; {effect}", _speed(comparison), harmful=harmful)
    if comparison.data.meaningless:
        return Verdict("Meaningless: compared on random data", (verdict.headline,), (RANDOM,))
    return verdict


def _judge(report: Report, found: Savings) -> Verdict:
    if report.data is None:
        return _unmeasured(report, found)
    if report.plan is not None and report.plan.split:
        return _cut(report, found)
    return _analyzed(report, found)


def predicted_error(report: Report) -> float | None:
    """Relative error of the outputs, as the plan adds it up."""
    if report.plan is None or report.plan.predicted_error is None:
        return None
    return math.sqrt(max(report.plan.predicted_error, 0.0))


def _unmeasured(report: Report, found: Savings) -> Verdict:
    able = sum(1 for site in report.sites if site.factorizable)
    return Verdict(
        f"{text.rough(found.share(found.unknown))} of the weights sit in "
        f"{text.number(able, 'layer')} that could be split",
        ("How much of them these layers use is not known yet: analyze the model with data.",),
    )


def _cut(report: Report, found: Savings) -> Verdict:
    gone = text.rough(found.share(found.goes))
    if report.comparison is None:
        guess = predicted_error(report)
        cost = "What that costs at the model’s outputs was not measured."
        if guess is not None:
            cost = f"The outputs change by about {text.percent(guess)}, as predicted; not measured."
        return Verdict(
            f"{gone} of the weights can go",
            (cost, _hold(report)),
            _doubts(report, found),
        )
    ratio = report.comparison.parameters.ratio
    if ratio is not None and ratio < 1:
        gone = text.rough(1 - ratio)
    effect, harmful = _effect(report.comparison)
    headline = f"{gone} of the weights are gone; {effect}"
    if harmful:
        headline = f"{gone} of the weights are gone, and too much with them: {effect}"
    return Verdict(headline, _speed(report.comparison), _doubts(report, found), harmful)


def _analyzed(report: Report, found: Savings) -> Verdict:
    share, kept = found.share(found.goes), _kept(report)
    if share >= _WORTH:
        cost = "What that costs at the model’s outputs is measured by “onnxrank compress”."
        return Verdict(
            f"{text.rough(share)} of the weights can go{kept}",
            (_hold(report), cost),
            _doubts(report, found),
        )
    if found.undecided and found.share(found.undecided) >= _WORTH:
        return Verdict(
            "Too little data to tell what can go",
            (
                f"{text.rough(found.share(found.undecided))} of the weights look dispensable, in "
                f"layers whose rank has not settled. {_more_data(report)}",
            ),
        )
    headline = "Hardly any weight" if found.goes else "No weight"
    return Verdict(f"{headline} can go{kept}", (_why_not(report, found), _hold(report)))


def _kept(report: Report) -> str:
    energy = report.settings.get("energy")
    if not isinstance(energy, (int, float)):
        return ""
    return f" with {text.percent(energy, 2)} of every layer’s energy kept"


def _hold(report: Report) -> str:
    """What was asked of every layer, and how much of it that takes."""
    energy = report.settings.get("energy")
    share = report.mean_layer_utilization
    if not isinstance(energy, (int, float)) or share is None:
        return ""
    return (
        f"On these data, {text.percent(energy, 2)} of what a layer’s inputs and outputs hold lies "
        f"in {text.rough(share)} of its directions, on average."
    )


def _why_not(report: Report, found: Savings) -> str:
    """Where the weights are that cannot go."""
    reasons = [
        (found.full, "in layers that use too many of their directions for a pair to be smaller"),
        (found.unsettled, "in layers that have seen too few rows"),
        (found.fixed, "in layers that cannot be rewritten"),
        (found.rest, "in no layer that is measured: tables, biases, skipped nodes"),
    ]
    largest = sorted((part for part in reasons if part[0] > 0), key=lambda part: -part[0])
    told = [
        f"{text.rough(found.share(amount))} {where}"
        for amount, where in largest
        if found.share(amount) >= _WORTH
    ]
    return f"Of the weights, {text.listed(told)}." if told else "It has no weights to speak of."


def _doubts(report: Report, found: Savings) -> tuple[str, ...]:
    """Savings that few rows leave open."""
    if found.share(found.undecided) < _WORTH:
        return ()
    more = text.rough(found.share(found.undecided))
    return (f"Another {more} is undecided for lack of data. {_more_data(report)}",)


def _more_data(report: Report) -> str:
    wanted = samples_wanted(report)
    if not wanted or report.data is None:
        return ""
    return f"About {wanted:,} more samples would settle it; {report.data.samples:,} were seen."


def _effect(comparison: Comparison) -> tuple[str, bool]:
    """What became of the answers, and whether that is too much."""
    accuracy, agreement = comparison.accuracy, comparison.top1_agreement
    if accuracy and accuracy.original is not None and accuracy.candidate is not None:
        change = accuracy.candidate - accuracy.original
        before, after = text.percent(accuracy.original), text.percent(accuracy.candidate)
        if before == after:
            return f"accuracy stays at {after}", False
        return f"accuracy goes from {before} to {after}", change < -_ACCURACY
    if agreement is not None:
        if agreement == 1:
            return "every answer stays the same", False
        word = "only " if agreement < _AGREEMENT else ""
        return f"{word}{text.percent(agreement)} of the answers stay the same", bool(word)
    errors = [error.relative_l2 for error in comparison.outputs.values()]
    known = [error for error in errors if error is not None]
    if not known or len(known) < len(errors):
        return "how far the outputs are from the original’s is not known", False
    worst = max(known)
    if worst < 1e-5:
        return "the outputs stay the same", False
    return f"the outputs change by {text.percent(worst)}", worst > _ERROR


def _speed(comparison: Comparison) -> tuple[str, ...]:
    """Latency and file size in a sentence each."""
    told = []
    latency, stored = comparison.latency_ms, comparison.bytes
    if latency.ratio is not None and latency.ratio > 0:
        before, after = (
            text.milliseconds(latency.original),
            text.milliseconds(latency.candidate),
        )
        factor = 1 / latency.ratio
        many = comparison.latency_samples
        step = f" for {text.number(many, 'sample')}" if many else ""
        if factor >= 1.02:
            told.append(
                f"It runs {text.figure(factor)} times as fast: {after} in the place of "
                f"{before}{step}."
            )
        elif factor <= 0.98:
            told.append(f"It is not faster: {after} in the place of {before}{step}.")
        else:
            told.append(f"It is as fast as before: {after}{step}.")
    if stored.ratio is not None:
        told.append(
            f"The file takes {text.size(stored.candidate)} in the place of "
            f"{text.size(stored.original)}."
        )
    return tuple(told)
