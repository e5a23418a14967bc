"""The command line: options, one call, one print.

Exit codes: 0 done; 1 a gate did not hold; 2 usage or bad input; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from onnxrank.errors import OnnxRankError
from onnxrank.options import (
    Fraction,
    Shard,
    Sinks,
    data_options,
    preprocess_options,
    rank_options,
    run_options,
    selection_options,
    sink_options,
)
from onnxrank.version import __version__

if TYPE_CHECKING:
    from onnxrank.graph.sites import Selection

LEVELS = ["debug", "info", "warning", "error"]


class Commands(click.Group):
    """The group that turns errors into one line and an exit code, for every command."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see the module's exit codes."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OnnxRankError as error:
            _fail(ctx, str(error))
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # The reader has gone; Python must not complain when it flushes at exit.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            ctx.exit(128 + 13)
        except Exception as error:
            logging.getLogger(__name__).debug("unexpected error", exc_info=True)
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            hint = (
                "this is a bug in onnxrank; please report it with the output of --log-level debug"
            )
            _fail(ctx, f"{what} ({hint})")


def _fail(ctx: click.Context, message: str) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    ctx.exit(2)


def _gate(message: str) -> None:
    """Say which gate did not hold, and exit with 1."""
    click.echo(message, err=True)
    click.get_current_context().exit(1)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="onnxrank")
@click.option("-v", "--verbose", count=True, help="Log what is done; twice for details.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors and asked-for JSON.")
@click.option("--log-level", type=click.Choice(LEVELS), help="Log to standard error from here up.")
@click.pass_context
def main(ctx: click.Context, verbose: int, quiet: bool, log_level: str | None) -> None:
    """Measure the utilized rank of ONNX layers on data; factorize those that use little of it.

    \b
    onnxrank inspect model.onnx
    onnxrank analyze model.onnx --data samples.npz
    onnxrank compress model.onnx small.onnx --data samples.npz --energy 0.99
    """
    ctx.obj = quiet
    _leave_room()
    level = log_level or ("error" if quiet else ["warning", "info", "debug"][min(verbose, 2)])
    logging.basicConfig(
        level=level.upper(), format="%(levelname)s %(name)s: %(message)s", force=True
    )


def _leave_room() -> None:
    """Give numpy's linear algebra half of the cores, unless something else was asked for.

    It takes turns with onnxruntime, and the threads of both wait busily for their next turn: on
    two cores that others use as well, one thread was ten times as fast as two.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if "numpy" not in sys.modules:  # it reads this once
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, cores // 2)))


def _speaks(sinks: Sinks | None = None) -> bool:
    """Whether tables may be printed."""
    return not click.get_current_context().obj and not (sinks and sinks.alone)


def _watched() -> Any:
    """Progress on standard error, unless it was asked to be quiet."""
    from onnxrank.terminal import progress

    return progress(not click.get_current_context().obj)


@main.command(short_help="List every node with weights, factorizable or why not.")
@click.argument("model")
@selection_options
@sink_options
def inspect(model: str, selection: Selection, sinks: Sinks) -> None:
    """List every node with weights: size, cost, factorizable or why not. Needs no data.

    \b
    Examples:
      onnxrank inspect model.onnx
      onnxrank inspect model.onnx --include '*attention*' --json -
    """
    from onnxrank.stages.inspect import inspect

    report = inspect(model, selection=selection)
    sinks.write(report)
    if _speaks(sinks):
        from onnxrank.terminal import show_inspection

        show_inspection(report)


@main.command(short_help="Measure the utilized rank of every layer on data.")
@click.argument("model")
@data_options
@click.option(
    "--energy",
    type=Fraction(),
    metavar="E",
    default=0.99,
    show_default=True,
    help="Share of the energy that the utilized directions hold.",
)
@click.option("--centered", is_flag=True, help="Measure about the mean instead of about zero.")
@run_options
@selection_options
@sink_options
def analyze(
    model: str,
    data: str | None,
    moments: str | None,
    energy: float,
    centered: bool,
    selection: Selection,
    sinks: Sinks,
    **how: Any,
) -> None:
    """Measure the utilized rank of every layer on data, and the mean layer utilization.

    \b
    Examples:
      onnxrank analyze model.onnx --data samples.npz
      onnxrank analyze bert.onnx --data samples.npz --mask attention_mask --energy 0.999
      onnxrank analyze model.onnx --moments model.moments --json report.json
    """
    from onnxrank.stages.analyze import analyze_data

    with _watched() as progress:
        report = analyze_data(
            model,
            data,
            moments,
            energy=energy,
            centered=centered,
            selection=selection,
            progress=progress,
            **how,
        )
    sinks.write(report)
    if _speaks(sinks):
        from onnxrank.terminal import show_analysis

        show_analysis(report)


@main.command(short_help="Write a smaller model, verified and compared.")
@click.argument("model")
@click.argument("output")
@data_options
@click.option(
    "--eval",
    "evaluation",
    metavar="DATA",
    help="Compare on these data; by default on a part of --data that is kept out.",
)
@rank_options
@click.option("--dry-run", is_flag=True, help="Print the plan, write nothing.")
@run_options
@selection_options
@sink_options
def compress(model: str, output: str, dry_run: bool, sinks: Sinks, **how: Any) -> None:
    """Write a smaller model: measure, choose ranks, factorize, verify, compare.

    Without a goal it is the smallest model whose outputs hold on samples that were kept apart.
    Exits with 1, and writes nothing, if no layer is worth splitting.

    \b
    Examples:
      onnxrank compress model.onnx small.onnx --data samples.npz
      onnxrank compress model.onnx small.onnx --data samples.npz --params 0.5
      onnxrank compress model.onnx small.onnx --data x.npz --eval labelled.npz --max-drop 0.002
      onnxrank compress model.onnx small.onnx --moments model.moments --energy 0.999 --dry-run
    """
    from onnxrank.stages.deliver import deliver

    with _watched() as progress:
        report = deliver(model, output, dry_run=dry_run, progress=progress, **how)
    sinks.write(report)
    if _speaks(sinks):
        from onnxrank.terminal import show_delivery

        show_delivery(report)
    assert report.plan is not None
    if not report.plan.split:
        why = "; ".join(report.notes) or "no layer is worth splitting"
        _gate(f"Nothing to split in {model}: {why}. Nothing is written.")


@main.command(short_help="Choose what to split, and save the choice.")
@click.argument("model")
@click.argument("output", metavar="PLAN.json")
@data_options
@rank_options
@run_options
@selection_options
def plan(model: str, output: str, **how: Any) -> None:
    """Choose form and rank of every layer, with expected error and cost, and save the plan.

    Edited by hand or not, 'compress --plan PLAN.json' applies it.

    \b
    Examples:
      onnxrank plan model.onnx plan.json --data samples.npz --params 0.5
      onnxrank compress model.onnx small.onnx --data samples.npz --plan plan.json
    """
    from onnxrank.record import check_place
    from onnxrank.stages.deliver import deliver

    check_place(output)
    with _watched() as progress:
        report = deliver(model, output, dry_run=True, progress=progress, **how)
    assert report.plan is not None
    report.plan.save(output)
    if _speaks():
        from onnxrank.terminal import show_delivery

        show_delivery(report)


@main.command(short_help="Compare two models on the same data.")
@click.argument("original")
@click.argument("candidate")
@click.option("--data", required=True, metavar="DATA", help="Samples to compare on.")
@preprocess_options
@click.option(
    "--max-error",
    type=float,
    metavar="X",
    help="Exit with 1 if an output's relative L2 error is larger.",
)
@click.option(
    "--min-agreement",
    type=Fraction(),
    metavar="X",
    help="Exit with 1 if fewer top-1 classes are the same.",
)
@click.option(
    "--min-speedup",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="X",
    help="Exit with 1 if the candidate is not X times as fast.",
)
@click.option("--latency/--no-latency", default=True, show_default=True, help="Time both models.")
@run_options
@click.option("--json", "json_", metavar="FILE", help="Write the comparison as JSON; - for stdout.")
@click.option("--html", metavar="FILE", help="Write the comparison as one page for a browser.")
@click.option("--junit", metavar="FILE", help="Write the verdict of every gate as JUnit XML.")
def compare(
    original: str,
    candidate: str,
    data: str,
    max_error: float | None,
    min_agreement: float | None,
    min_speedup: float | None,
    json_: str | None,
    html: str | None,
    junit: str | None,
    **how: Any,
) -> None:
    """Compare two models on data: outputs, agreement, parameters, MACs, bytes, latency.

    \b
    Examples:
      onnxrank compare model.onnx small.onnx --data held_out.npz
      onnxrank compare model.onnx small.onnx --data held_out.npz --min-agreement 0.99 --json -
      onnxrank compare model.onnx small.onnx --data held_out.npz --min-speedup 1.2 --junit gates.xml
    """
    from onnxrank.stages.compare import compare
    from onnxrank.stages.gates import judge

    limits = {"max_error": max_error, "min_agreement": min_agreement, "min_speedup": min_speedup}
    if junit is not None and set(limits.values()) == {None}:
        raise click.UsageError("--junit shows gates: give --max-error or another one")
    if min_speedup is not None and not how["latency"]:
        raise click.UsageError("--min-speedup needs the latency that --no-latency leaves out")
    sinks = Sinks(json_, html=html, junit=junit)
    with _watched() as progress:
        comparison = compare(original, candidate, data, progress=progress, **how)
    sinks.write(comparison)
    if _speaks(sinks):
        from onnxrank.terminal import show_comparison

        show_comparison(comparison)
    gates = judge(comparison, **limits)
    sinks.write_gates(comparison, gates, candidate)
    failures = [gate.failure for gate in gates if gate.failure is not None]
    if failures:
        _gate("\n".join(failures))


@main.command(short_help="Train a smaller model's factors on the original's outputs.")
@click.argument("original")
@click.argument("candidate")
@click.argument("output")
@click.option("--data", required=True, metavar="DATA", help="Samples to train on, as for compress.")
@click.option(
    "--eval",
    "evaluation",
    metavar="DATA",
    help="Compare on these data; by default on the part of --data that is kept out.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    default=300,
    show_default=True,
    help="Steps of training.",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    default=0.001,
    show_default=True,
    help="A factor changes by about this share of its size in a step, at most.",
)
@click.option("--labels", is_flag=True, help="Learn __label__ instead of the original's outputs.")
@preprocess_options
@run_options
@click.option("--json", "json_", metavar="FILE", help="Write the result as JSON; - for stdout.")
def finetune(original: str, candidate: str, output: str, json_: str | None, **how: Any) -> None:
    """Train what 'compress' wrote on the original's outputs, end to end; no labels are needed.

    Only the constants of the factors change. A part of the data is kept out and decides: exits
    with 1, and writes nothing, if the model is not better there. Needs the extra 'finetune'.

    \b
    Examples:
      onnxrank finetune model.onnx small.onnx better.onnx --data samples.npz
      onnxrank finetune model.onnx small.onnx better.onnx --data x.npz --labels --steps 1000
    """
    from onnxrank.finetune import finetune

    sinks = Sinks(json_)
    with _watched() as progress:
        found = finetune(original, candidate, output, progress=progress, **how)
    sinks.write_json(found)
    if _speaks(sinks):
        from onnxrank.terminal import show_recovery

        show_recovery(found)
    if found.chosen is None:
        _gate(
            f"No checkpoint of {candidate} is better on the samples kept out. Nothing is written."
        )


@main.command(short_help="Collect moments of every layer's input to a file.")
@click.argument("model")
@click.argument("moments")
@click.option("--data", required=True, metavar="DATA", help="Samples to collect from.")
@preprocess_options
@click.option("--shard", type=Shard(), metavar="I/N", help="Only the I-th of N parts of the data.")
@run_options
@selection_options
def collect(model: str, moments: str, data: str, **how: Any) -> None:
    """Collect moments of every layer's input, and save them to the file MOMENTS.

    If it is interrupted, the same command goes on where it stopped.

    \b
    Examples:
      onnxrank collect model.onnx model.moments --data samples.npz
      onnxrank collect model.onnx part1.moments --data big/ --shard 1/4
    """
    from onnxrank.record import check_place
    from onnxrank.stages.collect import resume

    check_place(moments)
    with _watched() as progress:
        found = resume(model, data, moments, progress=progress, **how)
    if _speaks():
        from onnxrank.terminal import show_moments

        show_moments(found, moments)


@main.command(short_help="Add moments of disjoint data.")
@click.argument("moments", nargs=-1, required=True)
@click.option("--output", required=True, metavar="FILE", help="Where the sum goes.")
def merge(moments: tuple[str, ...], output: str) -> None:
    """Add moments of disjoint data of one model.

    \b
    Example:
      onnxrank merge part1.moments part2.moments --output model.moments
    """
    from onnxrank.record import check_place
    from onnxrank.stages.merge import merge

    check_place(output)
    found = merge(moments)
    found.save(output)
    if _speaks():
        from onnxrank.terminal import show_moments

        show_moments(found, output)


@main.command(short_help="Show a saved report as one page for a browser.")
@click.argument("result", metavar="REPORT.json")
@click.option("--html", required=True, metavar="FILE", help="Where the page goes; - for stdout.")
@click.option("--against", metavar="OTHER.json", help="Show this report beside it.")
def report(result: str, html: str, against: str | None) -> None:
    """Show what --json wrote as one HTML file: offline, in light and dark, on paper.

    \b
    Examples:
      onnxrank report report.json --html report.html
      onnxrank report after.json --against before.json --html both.html
    """
    from onnxrank.report import headline, read

    sinks = Sinks(None, html=html)
    found = read(result)
    sinks.write(found, None if against is None else read(against))
    if _speaks(sinks):
        click.echo(f"{html}: {headline(found)}")


@main.command(short_help="Write a folder that a model server loads.")
@click.argument("model")
@click.argument("directory", metavar="DIR")
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Choice(["triton", "kserve", "mlserver", "mlflow"]),
    help="The server it is for.",
)
@click.option("--name", metavar="NAME", help="What clients call it; the file's name otherwise.")
@click.option(
    "--version", type=click.IntRange(1), default=1, show_default=True, help="Its version."
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    metavar="N",
    help="Let the server join requests, up to N samples. Without it they run as they come.",
)
def bundle(model: str, directory: str, target: str, **how: Any) -> None:
    """Write a folder that a model server loads unchanged, with README.md and a request.

    \b
    Examples:
      onnxrank bundle small.onnx --to triton repository
      onnxrank bundle small.onnx --to mlserver served --name encoder --version 2
    """
    from onnxrank.serving import bundle

    with _watched() as progress:
        made = bundle(model, target, directory, progress=progress, **how)
    if _speaks():
        click.echo(
            f"{directory}: {made.name} for {target}, "
            f"{len(made.files)} files, {made.bytes:,} bytes; "
            "README.md says how to start, ask and stop it"
        )
        if not made.sample_works:
            click.echo("note: the model ran on none of the plain samples; edit the request file")
