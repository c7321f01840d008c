"""Spans: nothing without OpenTelemetry, and with it ids alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from secure_quant import tracing
from secure_quant.errors import BudgetExceeded, ConfigError
from secure_quant_server.mpc.spans import Spans

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


def test_nothing_happens_where_nobody_traces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "opentelemetry.sdk.trace", raising=False)
    monkeypatch.setattr(tracing, "_own", None)
    with tracing.current(tracing.span("x", parent=PARENT, samples=1)) as made:
        assert not made.runs
        made.note(samples=1)
        made.failed("INTERNAL")
        tracing.note(samples=1)
        tracing.past("y", 1.0)
        assert tracing.header_of() == tracing.header_of(made) == ""
    made.end()
    assert "opentelemetry.sdk.trace" not in sys.modules


@pytest.mark.parametrize("value", [
    "", "x", PARENT.upper(), f"{PARENT}-more", PARENT[:-1], PARENT.replace("-", "_"),
    PARENT.encode(), f"{PARENT}\n",
])  # fmt: skip
def test_a_header_is_taken_if_it_is_one(value: str | bytes):
    assert tracing.parent_in([("other", PARENT), ("traceparent", value)]) == ""
    assert tracing.parent_in([("traceparent", PARENT)]) == PARENT
    assert tracing.parent_in(None) == ""


@pytest.mark.parametrize("url", [
    "collector:4317", "http://collector", "ftp://collector:4317", "http://collector:99999",
    "http://user:planted@collector:4317", "http://collector:4317/path",
])  # fmt: skip
def test_a_collector_is_an_address(url: str):
    with pytest.raises(ConfigError, match="traces"):
        tracing.export("party0", url)


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Called, the spans that ended so far."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_own", provider.get_tracer("test"))
    yield exporter.get_finished_spans
    provider.shutdown()


def test_a_span_has_its_parent_and_no_text_of_an_error(finished):
    headers = []

    def call() -> None:
        with tracing.current(tracing.span("call", "server", PARENT, samples=3)) as made:
            headers.extend((tracing.header_of(), tracing.header_of(made)))
            tracing.note(step=2)
            tracing.past("protocol", 0.25, rounds=22)
            raise BudgetExceeded("planted", got="planted")

    with pytest.raises(BudgetExceeded):
        call()
    inner, outer = finished()
    header, same = headers
    assert header == same
    assert header == f"00-{'ab' * 16}-{outer.context.span_id:016x}-01"
    assert f"{outer.parent.span_id:016x}" == "cd" * 8
    assert (inner.parent.span_id, inner.name) == (outer.context.span_id, "protocol")
    assert 0.24e9 < inner.end_time - inner.start_time < 0.26e9
    assert dict(outer.attributes) == {"secure_quant.samples": 3, "secure_quant.step": 2}
    assert outer.status.description == "BudgetExceeded"
    assert "planted" not in outer.to_json()


def test_a_deal_ends_with_the_last_item_of_its_credit(finished):
    spans = Spans()
    spans.begin("", "m", 4)  # the first credit is nobody's
    spans.begin(PARENT, "m", 2)
    spans.begin("no trace", "m", 1)
    spans.begin(PARENT, "m", 3)
    for dealt, ended in enumerate([0, 0, 0, 0, 0, 0, 1, 1, 1]):
        assert len(finished()) == ended, dealt
        spans.dealt()
    assert [each.attributes["secure_quant.items"] for each in finished()] == [2]
    spans.end()
    lost = finished()[-1]
    assert (lost.attributes["secure_quant.items"], lost.status.description) == (3, "UNAVAILABLE")
