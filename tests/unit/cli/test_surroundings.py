"""The owner's tools in surroundings of other people's choosing."""

import io
import sys

import pytest

from secure_quant_cli.console import plain_where_needed, table


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("ascii", "  ----  --------"), ("cp1252", "  ----  --------"), ("utf-8", "  ────  ────────")],
)
def test_tables_in_any_encoding(monkeypatch, encoding, line):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    plain_where_needed()
    print(table(("name", "range"), [("a", "−1 … 2"), ("b", "≤ 5")]))
    sys.stdout.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert lines[1][: len(line)] == line[: len(lines[1])]
    assert len({len(text) for text in lines[:2]}) == 1


def test_streams_that_cannot_be_set_are_left(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    plain_where_needed()
