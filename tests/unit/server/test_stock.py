"""What a worker makes ahead is bounded, whatever batches clients come with."""

import pytest

from conformance.builder import Net
from secure_quant.he.bundle import load_client, load_server, split
from secure_quant_server.he import worker


def test_admission_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(2, (5,))
    net.linear(4)
    bundles = split(net.done())
    evaluator, (_, plan) = load_server(bundles["server"]), load_client(bundles["client"])
    one = plan.steps[0].call(1).cost.bytes_down * worker.BYTES_PER_ANSWERED
    monkeypatch.setattr(worker, "STOCK_BYTES", one)
    stock = worker.Stock([evaluator])
    assert not stock.wanted
    for batch in (1, 200, 1, 256):
        stock.note((0, 0, batch))
    assert stock._admitted == {(0, 0, 1)}
    made = 0
    while stock.wanted:
        stock.make_one()
        made += 1
    assert made == 5  # four, and the look that found the shelf full
