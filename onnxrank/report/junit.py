"""Gates as JUnit XML, which continuous integration shows as tests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from onnxrank.results import Comparison
from onnxrank.stages.gates import Gate

# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(comparison: Comparison, gates: Sequence[Gate], candidate: str) -> str:
    """A test suite with one test a gate, and the figures they were judged by as properties."""
    failures = str(sum(gate.failure is not None for gate in gates))
    counts = {"tests": str(len(gates)), "failures": failures, "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "onnxrank compare", **counts})
    suite.set("time", f"{comparison.data.seconds:.3f}")
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _figures(comparison):
        entry = {"name": _clean(name), "value": f"{value:.9g}"}
        ElementTree.SubElement(properties, "property", entry)
    for gate in gates:
        title = f"{gate.name} {gate.limit:g}"
        test = ElementTree.SubElement(
            suite, "testcase", {"classname": _clean(candidate), "name": title, "time": "0"}
        )
        if gate.failure is not None:
            message = _clean(gate.failure)
            ElementTree.SubElement(test, "failure", {"message": message}).text = message
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _figures(comparison: Comparison) -> Iterator[tuple[str, float]]:
    """What is known of size, speed and error, by name."""
    for name, pair in (
        ("parameters", comparison.parameters),
        ("macs", comparison.macs),
        ("bytes", comparison.bytes),
        ("latency_ms", comparison.latency_ms),
    ):
        if pair.ratio is not None:
            yield f"{name} ratio", pair.ratio
    if comparison.top1_agreement is not None:
        yield "top-1 agreement", comparison.top1_agreement
    for output, error in comparison.outputs.items():
        if error.relative_l2 is not None:
            yield f"relative L2 error of {output}", error.relative_l2


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
