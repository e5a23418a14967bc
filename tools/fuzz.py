"""Damage models at random for as long as wanted, and report what does not end in a clear error.

    python tools/fuzz.py [--seconds 60] [--seed 1] [--keep FOLDER]

Each damaged model is read, searched for sites, instrumented and rewritten, without running it; by
bytes and by fields in turn. The work is done in a process of its own, so that a crash in the
native code of onnx or protobuf is seen, too. Exit status 1 if anything but an OnnxRankError came
out, or a model took more than its limits of time and memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BATCH = 200
ENDS = ("refused", "sites", "no sites")
SECONDS, MEGABYTES = 10.0, 300.0


def work(seed: int, folder: Path, answers: Connection) -> None:
    """Examine one batch; every answer is (name, how it ended)."""
    from tests.graph import fuzz

    limits = fuzz.Limits(SECONDS, MEGABYTES)
    for name, model in fuzz.damaged(fuzz.seeds(), seed, BATCH):
        data = model if isinstance(model, bytes) else model.SerializeToString()
        path = folder / f"{name.replace(' ', '-')}.onnx"
        path.write_bytes(data)
        answers.send((name, ""))
        try:
            ended = limits.run(model if isinstance(model, onnx.ModelProto) else path)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            ended = f"{type(error).__name__}: {error}"
        answers.send((name, ended))
        if ended in ENDS:
            path.unlink()
    answers.send(None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where models that fail are left")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    ended: Counter[str] = Counter()
    failed: list[str] = []
    seed = options.seed
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        while time.monotonic() < end:
            for what, how in batch(seed, folder):
                if how in ENDS:
                    ended[how] += 1
                    continue
                ended["failed"] += 1
                failed.append(f"{what}: {how}")
                print("FAILED", failed[-1], flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    name = f"{what.replace(' ', '-')}.onnx"
                    (options.keep / name).write_bytes((folder / name).read_bytes())
            seed += 1
    print(f"seeds {options.seed} to {seed - 1}:", dict(ended))
    return 1 if failed else 0


def batch(seed: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Answers of one batch, as they come; a crash or a hang is one, too, and ends it."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=work, args=(seed, folder, send))
    worker.start()
    send.close()
    begun = f"{seed}"
    try:
        while True:
            if not receive.poll(120):
                yield begun, "no answer after 120 s"
                return
            answer = receive.recv()
            if answer is None:
                return
            begun, how = answer
            if how:
                yield begun, how
    except EOFError:
        worker.join()
        yield begun, f"the process ended with {worker.exitcode}"
    finally:
        worker.kill()
        worker.join()


if __name__ == "__main__":
    sys.exit(main())
