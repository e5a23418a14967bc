"""Factorizing and quantizing together, in both orders, by onnxruntime's own quantizers.

    python tools/bench/quantization.py MODEL.onnx --data DATA --eval EVAL [--mask INPUT]
        [--compress "--params 0.5"] [--again "--params 0.5"] [--operators MatMul,Gemm]
        [--folder FOLDER]

Compresses, then quantizes the original and the compressed model: dynamic int8, static int8 (QDQ,
calibrated on the first samples of DATA), 4-bit weights of MatMul. Then compresses what was
quantized (`--again`), where that can be done. Every file is compared with the original on EVAL,
and timed in turns with it. Files that are already in the folder are taken as they are. The 4-bit
quantizer of onnxruntime needs onnx-ir.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import common

HEAD = ["model", "bytes", "of the original", "relative error", "cosine", "agreement",
        "accuracy change"]  # fmt: skip


class Refused(Exception):
    """Why a step cannot be taken."""


class Bench:
    """Where the files are, and what they are compared on."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.operators = options.operators.split(",") if options.operators else None

    def path(self, name: str) -> Path:
        """The file of a step."""
        return self.folder / f"{name}.onnx"

    def data(self, path: Path, samples: int | None = None, batch: int = 32) -> Any:
        """Samples for the original's inputs."""
        from onnxrank.graph.model import load
        from onnxrank.runtime.data import open_data

        return open_data(str(path), load(self.options.model).inputs, self.run(samples, batch))

    def run(self, samples: int | None = None, batch: int = 32) -> Any:
        """How all of them are run."""
        from onnxrank.runtime.session import Run

        return Run(provider="cpu", threads=self.options.threads, samples=samples, batch_size=batch)

    def compress(self, source: Path, target: Path, further: str) -> None:
        """Run `onnxrank compress`; refused if it writes nothing."""
        if not source.exists():
            raise Refused("there is no such file, see above")
        options = self.options
        words = [sys.executable, "-m", "onnxrank", "compress", str(source), str(target)]
        words += ["--data", str(options.data), "--threads", str(options.threads)]
        words += ["--provider", "cpu", *shlex.split(further)]
        if options.mask:
            words += ["--mask", options.mask]
        if options.samples:
            words += ["--samples", str(options.samples)]
        env = common.one_thread(options.threads)
        said = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if said.returncode:
            first = (said.stderr.strip() or said.stdout.strip()).splitlines()[0]
            raise Refused(first.replace(f"{source.parent}/", ""))

    def dynamic(self, source: Path, target: Path) -> None:
        """Weights int8, activations measured at run time."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # onnxruntime has no ConvInteger for signed weights.
        kind = QuantType.QUInt8 if "Conv" in _operators(source) else QuantType.QInt8
        prepared = _prepared(source, target)
        quantize_dynamic(prepared, target, weight_type=kind, per_channel=kind == QuantType.QInt8)
        prepared.unlink()

    def static(self, source: Path, target: Path) -> None:
        """Weights and activations int8, with QuantizeLinear and DequantizeLinear."""
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            """The first samples, batch by batch."""

            def __init__(self, batches: Iterator[Any]) -> None:
                self.batches = batches

            def get_next(self) -> Any:
                """Return the inputs of a batch, or nothing after the last."""
                batch = next(self.batches, None)
                return None if batch is None else dict(batch.feeds)

        prepared = _prepared(source, target)
        batches = self.data(self.options.data, self.options.calibration).batches()
        quantize_static(prepared, target, Reader(iter(batches)), per_channel=True,
                        op_types_to_quantize=self.operators)  # fmt: skip
        prepared.unlink()

    def four_bits(self, source: Path, target: Path) -> None:
        """Weights of MatMul in 4 bits, blocks of 32."""
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), bits=4, block_size=32, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))
        if "MatMulNBits" not in _operators(target):
            target.unlink()
            raise Refused("it has no MatMul with constant weights")

    @cached_property
    def reference(self) -> list[tuple[Any, dict[str, Any]]]:
        """What the original gives."""
        return list(self.outputs(self.options.model))

    def outputs(self, path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Run a file over the samples that it is judged on."""
        from onnxrank.graph.model import load
        from onnxrank.runtime.evaluate import run_outputs

        return run_outputs(load(path), self.data(self.options.eval), self.run())

    def row(self, path: Path) -> list[str]:
        """Size, error and time of a file beside the original."""
        sizes = [p.stat().st_size for p in (path, self.options.model)]
        return [f"{sizes[0]:,}", f"{sizes[0] / sizes[1]:.3f}", *self.error(path), *self.times(path)]

    def error(self, path: Path) -> list[str]:
        """Of the first output; agreement is that of classes, or of nearest neighbours."""
        import numpy as np

        from onnxrank.runtime.evaluate import Differences

        found = Differences()
        pairs: tuple[list[Any], list[Any]] = ([], [])
        name = next(iter(self.reference[0][1]))
        for (batch, before), (_, after) in zip(self.reference, self.outputs(path), strict=True):
            found.add(name, before[name], after[name], batch)
            pairs[0].append(before[name])
            pairs[1].append(after[name])
        stats, top1 = found.outputs[name], found.top1
        cells = [f"{stats.relative_l2:.4f}", f"{stats.cosine:.4f}"]
        if top1 is None:
            return [*cells, f"{common.neighbours(*map(np.concatenate, pairs)):.4f}", ""]
        cells.append(f"{top1.agreement:.4f}")
        if not top1.labelled:
            return [*cells, ""]
        return [*cells, f"{top1.accuracy_candidate - top1.accuracy_reference:+.4f}"]

    def times(self, path: Path) -> list[str]:
        """Milliseconds of a step at each batch size, in turns with the original."""
        from onnxrank.graph.model import load
        from onnxrank.runtime.timing import latency

        original, candidate = load(self.options.model), load(path)
        cells = []
        for batch in self.options.batches:
            feeds = next(iter(self.data(self.options.eval, batch, batch).batches())).feeds
            time = latency(original, candidate, feeds, self.run(), repeats=self.options.rounds)
            cells.append(f"{time.candidate:.1f} ({time.ratio:.2f})")
        return cells


def _prepared(source: Path, target: Path) -> Path:
    """The file with its shapes inferred and its constants folded, as the quantizers ask for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, path, skip_symbolic_shape=True)
    return path


def _operators(path: Path) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def steps(bench: Bench) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    """What each line of the table is called, its file, and how it is made."""
    original, small = Path(bench.options.model), bench.path("compressed")
    quantizers = {
        "int8, dynamic": bench.dynamic,
        "int8, static": bench.static,
        "4 bits": bench.four_bits,
    }
    options = bench.options
    yield "compressed", small, lambda: bench.compress(original, small, options.compress)
    for name, quantize in quantizers.items():
        plain = bench.path(name.replace(", ", "_").replace(" ", "_"))
        first = plain.with_stem(f"compressed_{plain.stem}")
        last = plain.with_stem(f"{plain.stem}_compressed")
        again = f"--quantized {options.again}"
        yield name, plain, partial(quantize, original, plain)
        yield f"compressed, then {name}", first, partial(quantize, small, first)
        yield f"{name}, then compressed", last, partial(bench.compress, plain, last, again)


def table(bench: Bench) -> tuple[str, list[str]]:
    """The rows, and the steps that cannot be taken with the reason."""
    rows, refused = [], []
    for name, path, make in steps(bench):
        try:
            if not path.exists():
                make()
        except Refused as error:
            refused.append(f"- {name}: {error}")
            continue
        rows.append([name, *bench.row(path)])
        print(*rows[-1], sep="  ", flush=True)
    head = [*HEAD, *(f"ms, batch {b} (over the original)" for b in bench.options.batches)]
    return common.table(head, rows), refused


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--mask")
    parser.add_argument("--samples", type=int, help="compress with the first of them")
    parser.add_argument("--compress", default="", help="further options of onnxrank compress")
    parser.add_argument("--again", default="", help="the same, for what is quantized already")
    parser.add_argument("--operators", help="that static quantization takes (default: all it can)")
    parser.add_argument("--calibration", type=int, default=256, help="samples of static int8")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="sizes to time")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    options = parser.parse_args()
    common.limit(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows, refused = table(Bench(options, folder))
    size = options.model.stat().st_size
    how = f"onnxrank compress {options.compress}".strip()
    said = f"{options.model.stem}, {size:,} bytes, compressed by `{how}`."
    cannot = ["Not possible:\n\n" + "\n".join(refused)] if refused else []
    common.record(options, "Together with quantization", said, rows, *cannot)


if __name__ == "__main__":
    main()
