"""Options that several commands share: each group becomes one object for the stages."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from onnxrank.record import Record
    from onnxrank.report import Result
    from onnxrank.results import Comparison
    from onnxrank.stages.gates import Gate

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Size(click.ParamType[int]):
    """An amount of memory: 4GiB, 512M, 1e9."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of a text such as 4GiB."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", str(value).lower())
        if match is None or match[2] not in _UNITS:
            self.fail(f"'{value}' is no size; write for example 4GiB or 512MB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


class Fraction(click.FloatRange):
    """A number above 0 and at most 1."""

    def __init__(self) -> None:
        super().__init__(min=0.0, max=1.0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Refuse NaN too, which is in no range."""
        number: float = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value} is not a number above 0 and at most 1", param, ctx)
        return number


class Numbers(click.ParamType[tuple[Any, ...]]):
    """Numbers with commas between them: 224,224; with `repeat`, one number stands for all."""

    name = "numbers"

    def __init__(self, kind: type, repeat: int = 1) -> None:
        self.kind, self.repeat = kind, repeat

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Tuple of a text such as 224,224."""
        try:
            found = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not numbers with commas between them", param, ctx)
        return found * self.repeat if len(found) == 1 else found


class Shard(click.ParamType[tuple[int, int]]):
    """A part of the data: 2/4."""

    name = "shard"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Pair of a text such as 2/4."""
        match = re.fullmatch(r"(\d+)/(\d+)", str(value))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"'{value}' is no shard; write for example 2/4", param, ctx)
        return int(match[1]), int(match[2])


def run_options(command: Command) -> Command:
    """How to run the model: the command gets `run`, a Run."""

    @click.option(
        "--batch-size",
        type=click.IntRange(1),
        metavar="N",
        default=32,
        show_default=True,
        help="Samples a step, where the model leaves its batch dimension open.",
    )
    @click.option("--samples", type=click.IntRange(1), metavar="N", help="Use the first N samples.")
    @click.option(
        "--provider",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to run; auto takes CUDA where a device works.",
    )
    @click.option("--threads", type=click.IntRange(0), default=0, help="0: onnxruntime chooses.")
    @click.option(
        "--memory",
        type=Size(),
        default=0,
        metavar="SIZE",
        help="Limit for moments and activations together, for example 4GiB.",
    )
    @click.option(
        "--rows",
        type=click.FloatRange(0),
        default=64,
        show_default=True,
        metavar="N",
        help="Draw about N rows a dimension at random, where there are more; 0 for all.",
    )
    @click.option("--mask", metavar="INPUT", help="Model input whose zeros mark padding.")
    @click.option("--seed", type=int, default=0, show_default=True, help="Seed of every choice.")
    @functools.wraps(command)
    def wrapped(
        *,
        batch_size: int,
        samples: int | None,
        provider: str,
        threads: int,
        memory: int,
        rows: float,
        mask: str | None,
        seed: int,
        **rest: Any,
    ) -> Any:
        from onnxrank.runtime.session import Run

        run = Run(
            provider=provider,
            threads=threads,
            memory=memory,
            batch_size=batch_size,
            samples=samples,
            seed=seed,
            rows=rows or None,
            mask=mask,
        )
        return command(run=run, **rest)

    return wrapped  # type: ignore[return-value]


def data_options(command: Command) -> Command:
    """What to measure on: the command gets `source`, a Source."""

    @click.option(
        "--data",
        metavar="DATA",
        help="A .npz or .npy file, a folder of those, of ONNX test sets or of images, "
        "loader.py:function, or random:N.",
    )
    @click.option("--moments", metavar="FILE", help="Moments that 'collect' saved.")
    @preprocess_options
    @functools.wraps(command)
    def wrapped(*, data: str | None, moments: str | None, **rest: Any) -> Any:
        if data is None and moments is None:
            raise click.UsageError("give --data DATA or --moments FILE")
        return command(data=data, moments=moments, **rest)

    return wrapped  # type: ignore[return-value]


def preprocess_options(command: Command) -> Command:
    """How images become inputs: the command gets `preprocess`, a Preprocess or None."""

    @click.option("--preprocess", metavar="NAME", help="For folders of images: imagenet or none.")
    @click.option("--resize", type=Numbers(int, 2), metavar="H,W", help="Size of images.")
    @click.option("--mean", type=Numbers(float), metavar="R,G,B", help="Mean of channels in 0..1.")
    @click.option("--std", type=Numbers(float), metavar="R,G,B", help="Spread of channels.")
    @click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="Layout of image inputs.")
    @functools.wraps(command)
    def wrapped(
        *, preprocess: str | None, resize: Any, mean: Any, std: Any, layout: str | None, **rest: Any
    ) -> Any:
        explicit = {"resize": resize, "mean": mean, "std": std, "layout": layout}
        how = None
        if preprocess is not None or any(value is not None for value in explicit.values()):
            from onnxrank.runtime.images import named_preprocess

            how = named_preprocess(preprocess or "none", **explicit)
        return command(preprocess=how, **rest)

    return wrapped  # type: ignore[return-value]


def rank_options(command: Command) -> Command:
    """What is wanted and how: the command gets `goal`, `manner` and `centered`."""

    @functools.wraps(command)
    def wrapped(
        *,
        energy: float | None,
        params: float | None,
        macs: float | None,
        size: float | None,
        latency: float | None,
        max_drop: float | None,
        plan: str | None,
        agreement: float,
        error: float,
        method: str,
        align: int,
        allow_unstable: bool,
        force: bool,
        compensate: bool,
        **rest: Any,
    ) -> Any:
        budgets = {"params": params, "macs": macs, "size": size, "latency": latency}
        given = [name for name, share in budgets.items() if share is not None]
        others = {"energy": energy, "max-drop": max_drop, "plan": plan}
        given += [name for name, value in others.items() if value is not None]
        if len(given) > 1:
            names = " and ".join(f"--{name}" for name in given)
            raise click.UsageError(f"{names} are different goals: give one of them.")
        from onnxrank.results import Plan
        from onnxrank.stages.budget import Budget
        from onnxrank.stages.goal import Goal, Manner

        share = next(((k, v) for k, v in budgets.items() if v is not None), None)
        goal = Goal(
            energy=_default_energy(method, force) if not given else energy,
            budget=None if share is None else Budget(*share),
            max_drop=max_drop,
            plan=None if plan is None else Plan.load(plan),
            agreement=agreement,
            error=error,
        )
        manner = Manner(method, align, allow_unstable, force, compensate)
        return command(goal=goal, manner=manner, **rest)

    found: Command = wrapped  # type: ignore[assignment]
    for option in reversed(_RANK_OPTIONS):
        found = option(found)
    return found


def _default_energy(method: str, force: bool) -> float | None:
    """Forms and forced splits are asked of every layer alike, so an energy is meant."""
    if force:
        return 1.0
    return None if method == "auto" else 0.99


_RANK_OPTIONS = (
    click.option(
        "--energy", type=Fraction(), metavar="E", help="Keep this share of every layer's energy."
    ),
    click.option(
        "--params", type=Fraction(), metavar="R", help="Keep this share of the model's parameters."
    ),
    click.option("--macs", type=Fraction(), metavar="R", help="Keep this share of its operations."),
    click.option("--size", type=Fraction(), metavar="R", help="Keep this share of its bytes."),
    click.option(
        "--latency", type=Fraction(), metavar="R", help="Keep this share of its time, as measured."
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(0, 1),
        metavar="D",
        help="Lose at most this much accuracy (without labels: agreement, or relative error).",
    ),
    click.option("--plan", metavar="FILE", help="Apply a plan that 'plan' has written."),
    click.option(
        "--agreement",
        type=Fraction(),
        default=0.99,
        show_default=True,
        metavar="A",
        help="Without a goal: share of top-1 classes that must stay the same.",
    ),
    click.option(
        "--error",
        type=click.FloatRange(0, min_open=True),
        default=0.01,
        show_default=True,
        metavar="X",
        help="Without a goal: relative error allowed where there are no classes.",
    ),
    click.option(
        "--centered", is_flag=True, help="Measure ranks about the mean instead of about zero."
    ),
    click.option(
        "--method",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "centered", "optimal", "projection", "svd"]),
        help="Factor form, with --energy; auto takes the best available.",
    ),
    click.option(
        "--compensate/--no-compensate",
        default=True,
        show_default=True,
        help="Fit every layer to what the compressed ones before it give.",
    ),
    click.option(
        "--align",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Ranks of convolutions are multiples of this.",
    ),
    click.option(
        "--allow-unstable", is_flag=True, help="Also split layers whose rank has not settled."
    ),
    click.option(
        "--force",
        is_flag=True,
        help="Split every layer that can be, even where it saves nothing.",
    ),
)


def selection_options(command: Command) -> Command:
    """Which nodes are meant: the command gets `selection`, a Selection."""

    @click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Only nodes whose names match; a glob, repeatable.",
    )
    @click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave out nodes whose names match; a glob, repeatable.",
    )
    @click.option(
        "--quantized", is_flag=True, help="Split quantized weights too, into float factors."
    )
    @click.option(
        "--overridable",
        is_flag=True,
        help="Take weights that are graph inputs as well for constants.",
    )
    @functools.wraps(command)
    def wrapped(
        *,
        include: tuple[str, ...],
        exclude: tuple[str, ...],
        quantized: bool,
        overridable: bool,
        **rest: Any,
    ) -> Any:
        from onnxrank.graph.sites import Selection

        selection = Selection(include, exclude, quantized, overridable)
        return command(selection=selection, **rest)

    return wrapped  # type: ignore[return-value]


@dataclass(frozen=True)
class Sinks:
    """Where results go beside the terminal; '-' is standard output, alone.

    Files that could not be written are refused at once, before any work.
    """

    json: str | None
    csv: str | None = None
    html: str | None = None
    junit: str | None = None

    def __post_init__(self) -> None:
        from onnxrank.record import check_place

        if self.places.count("-") > 1:
            raise click.UsageError("only one result can go to standard output")
        for target in self.places:
            if target is not None and target != "-":
                check_place(target)

    @property
    def places(self) -> tuple[str | None, ...]:
        """Every place that was named, or not."""
        return self.json, self.csv, self.html, self.junit

    @property
    def alone(self) -> bool:
        """Standard output is taken by a machine-readable result."""
        return "-" in self.places

    def write_json(self, result: Record) -> None:
        """Write the JSON alone, if it was asked for."""
        _put(self.json, result.to_json)

    def write(self, result: Result, against: Result | None = None) -> None:
        """Write what was asked for; the page shows `against` beside it."""
        self.write_json(result)
        if self.csv is not None and hasattr(result, "to_csv"):
            _put(self.csv, result.to_csv)
        if self.html is not None:
            from onnxrank.report import render

            _put(self.html, lambda: render(result, against))

    def write_gates(self, comparison: Comparison, gates: Sequence[Gate], candidate: str) -> None:
        """Write the verdicts, if they were asked for."""
        if self.junit is not None:
            from onnxrank.report.junit import junit

            _put(self.junit, lambda: junit(comparison, gates, candidate))


def _put(target: str | None, text: Callable[[], str]) -> None:
    from onnxrank.record import write_text

    if target == "-":
        click.echo(text(), nl=False)
    elif target is not None:
        write_text(target, text())


def sink_options(command: Command) -> Command:
    """Where results go: the command gets `sinks`, a Sinks."""

    @click.option("--json", "json_", metavar="FILE", help="Write the report as JSON; - for stdout.")
    @click.option("--csv", "csv_", metavar="FILE", help="Write the sites as CSV; - for stdout.")
    @click.option("--html", metavar="FILE", help="Write the report as one page for a browser.")
    @functools.wraps(command)
    def wrapped(*, json_: str | None, csv_: str | None, html: str | None, **rest: Any) -> Any:
        return command(sinks=Sinks(json_, csv_, html), **rest)

    return wrapped  # type: ignore[return-value]
