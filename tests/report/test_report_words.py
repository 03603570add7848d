"""Numbers are written as people write them."""

import math

import pytest

from minilm.report import words


@pytest.mark.parametrize(
    ("write", "value", "written"),
    [
        (words.count, 1234567, "1,234,567"),
        (words.count, None, "n/a"),
        (words.short, 950, "950"),
        (words.short, 12_345, "12.3k"),
        (words.short, 838_144, "0.84M"),
        (words.short, 10_000_000, "10M"),
        (words.short, 124_439_808, "0.12B"),
        (words.short, math.nan, "n/a"),
        (words.duration, 0.25, "0.2 s"),
        (words.duration, 9.97, "10 s"),
        (words.duration, 59.6, "1 min 00 s"),
        (words.duration, 151.2, "2 min 31 s"),
        (words.duration, 3599.7, "1 h 00 min"),
        (words.duration, 7500, "2 h 05 min"),
        (words.duration, None, "n/a"),
        (words.size, 118_000_000, "118 MB"),
        (words.size, 12, "12 bytes"),
        (words.flops, 1.1e11, "110 GFLOP/s"),
        (words.flops, 989e12, "989 TFLOP/s"),
        (words.percent, 0.0, "0%"),
        (words.percent, 0.001, "less than 1%"),
        (words.percent, 0.999, "more than 99%"),
        (words.percent, 1.0, "100%"),
        (words.setting, None, "none"),
        (words.setting, "", "none"),
        (words.setting, True, "yes"),
        (words.setting, 2000, "2,000"),
        (words.setting, 6e-4, "0.0006"),
        (words.setting, {"rule": "documents", "val_fraction": 0.1}, "rule documents, val_fraction 0.1"),
        (words.setting, [1, "a"], "1, a"),
        (words.visible, "a\r\nb\x07\x85\ud800", "a\nb␇\ufffd\ufffd"),
    ],
)
def test_is_written(write, value, written):
    assert write(value) == written
