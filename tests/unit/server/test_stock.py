"""What a worker makes ahead, and when; how much of it is kept is the evaluator's business."""

from conformance.builder import Net
from secure_quant.he.bundle import load_server, split
from secure_quant_server.he import worker


def evaluator():
    net = Net(2, (5,))
    net.linear(4)
    return load_server(split(net.done())["server"])


def test_a_kind_is_made_until_it_is_full() -> None:
    stock = worker.Stock([evaluator()])
    assert stock.patience is None
    stock.note((0, 0, 1))
    stock.note((0, 0, 1))
    made = 0
    while stock.patience is not None:
        stock.make_one()
        made += 1
    assert made == 5  # four, and the look that found the shelf full


def test_only_what_is_quick_is_made_between_two_calls() -> None:
    stock = worker.Stock([evaluator()])
    stock.note((0, 0, 1))
    assert stock.patience == 0
    stock = worker.Stock([many_answers()])
    stock.note((0, 0, 1))
    assert stock.patience == worker.IDLE_S


def many_answers():
    net = Net(2, (600,))
    net.linear(600)
    made = load_server(split(net.done())["server"])
    assert made.plan.steps[0].call(1).ciphertexts_down * 2048 > worker.QUICK
    return made
