"""Any bytes in place of any one message, ahead of time and online: named or borne."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.errors import SecureQuantError
from tests.unit.mpc.protocol import graphs
from tests.unit.onehost.drive import SMALL, pair
from tests.unit.onehost.test_program import Ends, inputs


def tampered(runs: Any, step: int, end: int, rng: Any) -> tuple[int, str]:
    """Both runs, message ``step`` to ``end`` replaced by others of its length: exchanges until it
    was over, and how."""
    messages: list[Any] = [None, None]
    exchange = 0
    while True:
        try:
            made = [run.send(message) for run, message in zip(runs, messages, strict=True)]
        except StopIteration:
            return exchange, "borne"
        except SecureQuantError as error:
            return exchange, type(error).__name__
        messages = [made[1].sent, made[0].sent]
        if exchange == step:
            messages[end] = rng.bytes(len(messages[end]))
        exchange += 1


@pytest.mark.parametrize("end", [0, 1], ids=["to the client", "to the host"])
def test_online(end: int) -> None:
    ends, rng = Ends(graphs.mlp(), pair()), np.random.default_rng(end)
    q, found = inputs(ends.graph, 1), []
    for step in range(ends.plan.flights):
        one, two, _ = ends.prepare(1)
        runs = ends.client.run(one, q), ends.server.run(two)
        found.append(tampered(runs, step, end, rng)[1])
    # The first tells the item's number; no other message can be told from an honest one.
    assert found == ["MalformedMessage", *["borne"] * (ends.plan.flights - 1)]


@pytest.mark.heavy
@pytest.mark.parametrize("lpn", [None, SMALL], ids=["softspoken", "ferret"])
def test_ahead_of_time(lpn: Any) -> None:
    """To the host: COTs' counts and ciphertexts are checked, the rest only spoils the item."""
    rng, found = np.random.default_rng(2), list[str]()
    exchanges, how = tampered(item(lpn), -1, 1, rng)
    assert how == "borne"
    for step in range(exchanges):
        found.append(tampered(item(lpn), step, 1, rng)[1])
    assert found[0] == "MalformedMessage"  # COTs given away so far
    assert set(found) == {"MalformedMessage", "borne"}


def item(lpn: Any) -> Any:
    """Both ends of one, over a pairing of its own."""
    ends = Ends(graphs.mlp(), pair(lpn=lpn))
    return ends.client.prepare(1), ends.server.prepare(1)
