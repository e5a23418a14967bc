"""Numbers in words."""

from __future__ import annotations

import pytest

from onnxrank.report import text

GAP, MINUS = "\N{NO-BREAK SPACE}", "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (text.count, 0, "0"),
        (text.count, 9_876, "9,876"),
        (text.count, 9_999.6, "10.0 k"),
        (text.count, 12_345, "12.3 k"),
        (text.count, 999_600, "1.00 M"),
        (text.count, 92_400_000, "92.4 M"),
        (text.count, -9_216, "-9,216"),
        (text.count, None, "–"),
        (text.size, 512, "512 B"),
        (text.size, 5_345_685, "5.35 MB"),
        (text.percent, 0.0, "0 %"),
        (text.percent, 1.0, "100 %"),
        (text.percent, 0.9996, "99.96 %"),
        (text.percent, 0.99999, "over 99.99 %"),
        (text.percent, 0.5, "50 %"),
        (text.percent, 0.48123, "48.1 %"),
        (text.percent, 0.00012, "0.012 %"),
        (text.percent, 1e-9, "1e-07 %"),
        (text.percent, -0.25, "-25 %"),
        (text.rough, 0.4812, "48 %"),
        (text.rough, 0.0399, "4 %"),
        (text.points, -0.1234, "-12.3 points"),
        (text.points, 0.0, "±0 points"),
        (text.figure, 44_600.0, "44,600"),
        (text.figure, 0.012345, "0.0123"),
        (text.milliseconds, 4.2, "4.20 ms"),
        (text.milliseconds, 123.4, "123 ms"),
        (text.power, -9, "10⁻⁹"),
        (text.power, 0, "1"),
        (text.basename, "a/b\\c.onnx", "c.onnx"),
        (text.basename, None, "a model"),
        (text.listed, ["a"], "a"),
        (text.listed, ["a", "b", "c"], "a, b and c"),
    ],
)
def test_words(function, value: object, words: str) -> None:
    expected = words.replace("1e-07", f"1e{MINUS}07")
    assert function(value) == (
        expected
        if function in (text.listed, text.basename)
        else expected.replace(" ", GAP).replace("over" + GAP, "over ").replace("-", MINUS)
    )
