"""Tables, units and JSON."""

import json

import numpy as np
import pytest

from secure_quant_cli.console import human_bytes, milliseconds, print_json, progress, table


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (65_432, "65.4 KB"),
        (999_499, "999 KB"), (999_999, "1.00 MB"), (2_340_000, "2.34 MB"), (5e12, "5.00 TB"),
    ],
)  # fmt: skip
def test_bytes_have_three_digits(count: float | None, text: str) -> None:
    assert human_bytes(count) == text


def test_milliseconds() -> None:
    assert [milliseconds(t) for t in (None, 8.214, 1214.4)] == ["–", "8.21 ms", "1214 ms"]


def test_columns_line_up() -> None:
    lines = table(("name", "n"), [("conv1", 5), ("fc", 12345)]).splitlines()
    assert lines == ["  name       n", "  ─────  ─────", "  conv1      5", "  fc     12345"]


def test_json_takes_numpy_and_refuses_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"y": np.array([[1, 2]], np.int8), "t": np.float32(0.5), "none": None})
    assert json.loads(capsys.readouterr().out) == {"y": [[1, 2]], "t": 0.5, "none": None}
    with pytest.raises(ValueError, match="JSON"):
        print_json({"bad": float("nan")})
    with pytest.raises(TypeError, match="object"):
        print_json({"bad": object()})


def test_progress_tells_the_outcome_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("first"):
        pass
    with pytest.raises(KeyError), progress("second"):
        raise KeyError
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "first: done" in captured.err
    assert "second: failed" in captured.err
