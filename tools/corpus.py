"""Split everything at full rank in every graph that the onnx package has, and print a table.

    python tools/corpus.py [--only WORD] [--no-light] [--verbose]
    python tools/corpus.py --expect     what the fixtures give becomes what the tests expect

Each case: load, find the sites, split all that can be split into factor pairs of full rank, and
hold the result against the original: outputs in onnxruntime (or onnx's reference evaluator), and
every field of the message. Operator cases are run as they are and with their inputs turned into
weights. Exit status 1 if anything raised, changed, differed or went without a reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.graph import corpus  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--no-light", action="store_true", help="leave whole networks out")
    parser.add_argument("--verbose", action="store_true", help="a line for each case")
    parser.add_argument("--expect", action="store_true", help="write the fixtures' manifest")
    options = parser.parse_args()
    if options.expect:
        return expect()
    generated = corpus.generated()
    groups: dict[str, Iterable[corpus.Case]] = {
        "node": generated,
        "node, inputs as weights": (v for c in generated for v in corpus.weighted(c)),
        "simple, pytorch": corpus.stored(),
    }
    for exporter in sorted({entry["exporter"] for entry in corpus.manifest()}):
        groups[exporter] = corpus.fixtures(exporter)
    if not options.no_light:
        groups["light"] = corpus.light()
    head = (
        "group", "cases", "sites", "split", "ran", "do not run", "differ", "changed", "no reason",
        "refused", "raised", "s",
    )  # fmt: skip
    rows, skipped, held, bad = [head], Counter(), Counter(), []
    for name, cases in groups.items():
        began, found = time.monotonic(), []
        for case in cases:
            if options.only in case.name:
                found.append(corpus.judge(case))
                if options.verbose:
                    print(found[-1], file=sys.stderr)
        for outcome in found:
            skipped.update(outcome.skipped)
            held.update(outcome.held)
        bad += [o for o in found if not o.good]
        rows.append(
            (
                name,
                len(found),
                sum(o.sites for o in found),
                sum(o.split for o in found),
                sum(o.error is not None for o in found),
                sum(o.error is None and o.split > 0 for o in found),
                sum(o.error is not None and not o.error <= o.tolerance for o in found),
                sum(bool(o.changed) for o in found),
                sum(bool(o.unexplained) for o in found),
                sum(bool(o.refused) for o in found),
                sum(bool(o.raised) for o in found),
                round(time.monotonic() - began),
            )
        )
        for outcome in found:
            if outcome.refused:
                print(f"refused: {outcome.name}: {outcome.refused}", file=sys.stderr)
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(head))]
    for row in rows:
        print("  ".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)))
    print("skipped:", ", ".join(f"{k} {v}" for k, v in skipped.most_common()))
    print("analyzed, not split:", ", ".join(f"{k} {v}" for k, v in held.most_common()))
    for outcome in bad:
        print("BAD", outcome)
    return 1 if bad else 0


def expect() -> int:
    """Write what every fixture gives now to the manifest; look at the difference it makes."""
    entries = corpus.manifest()
    for entry, case in zip(entries, corpus.fixtures(), strict=True):
        entry["expect"] = corpus.judge(case).found
    text = json.dumps(entries, indent=1) + "\n"
    (corpus.FIXTURES / "manifest.json").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
