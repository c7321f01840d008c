"""Keys and stocks in a forked process."""

import numpy as np
import pytest
from slow.client.forking import in_child
from unit.client.he.test_session import GRAPH, MADE, PUBLIC, X

from secure_quant.errors import ConfigError, MalformedMessage
from secure_quant.he.evaluate import Evaluator
from secure_quant_client.he.ckks import CkksKeys
from secure_quant_client.he.key_stock import KeyStock


def test_a_forked_process_has_no_key_of_its_parents() -> None:
    session, evaluator = CkksKeys(PUBLIC, MADE), Evaluator(GRAPH, MADE)
    session.prepare(1)
    evaluator.prepare(0, 1)
    request = session.encrypt(0, X)
    session.prepare(1)
    (pad,) = session._pads.values()

    def child() -> bool:
        for use in (
            lambda: session.encrypt(0, X),
            lambda: session.decrypt(0, 1, b""),
            lambda: session.prepare(1),
        ):
            with pytest.raises((ConfigError, MalformedMessage)):
                use()
        answer = evaluator.evaluate(0, 1, request)
        with pytest.raises(ConfigError, match="forked process"):
            session.decrypt(0, 1, answer)
        return not (session._keys or session._pads or evaluator._stock)

    assert in_child(child)
    assert session.encrypt(0, X).startswith(pad.head)


def test_a_stock_begins_anew_in_a_forked_process() -> None:
    stock = KeyStock(PUBLIC, MADE, 1)
    stock.fill(1)
    (kept,) = stock._ready[1]
    evaluator, other = Evaluator(GRAPH, MADE), CkksKeys(PUBLIC, MADE)
    expected = other.decrypt(0, 1, evaluator.evaluate(0, 1, other.encrypt(0, X)))

    def child() -> bool:
        with stock.session(1) as session:  # though the parent holds the lock
            answer = evaluator.evaluate(0, 1, session.encrypt(0, X))
            found = session.decrypt(0, 1, answer)
        stock.close()
        return np.array_equal(found, expected) and session is not kept and not kept._keys

    try:
        with stock._changed:
            assert in_child(child)
        with stock.session(1) as session:
            assert session is kept
            assert session._keys
    finally:
        stock.close()
