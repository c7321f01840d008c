"""Joint protocols side by side."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from secure_quant.errors import MalformedMessage
from secure_quant.onehost.exchange import flow, swap, together
from tests.unit.onehost.drive import drive


def talk(name: str, sends: list[bytes], gets: list[int]) -> Any:
    heard = []
    for sent, expected in zip(sends, gets, strict=True):
        heard.append((yield from swap(sent, expected)))
    return name, heard


def test_runs_share_their_messages() -> None:
    one = together([talk("a", [b"1", b"22"], [0, 3]), talk("b", [], []), talk("c", [b"x"], [2])])
    two = together([talk("a", [b"", b"333"], [1, 2]), talk("b", [], []), talk("c", [b"yz"], [1])])
    first, second, sent = drive(one, two)
    assert first == [("a", [b"", b"333"]), ("b", []), ("c", [b"yz"])]
    assert second == [("a", [b"1", b"22"]), ("b", []), ("c", [b"x"])]
    assert sent == [(2, 2), (2, 3)]


@pytest.mark.parametrize("bad", [b"", b"123"])
def test_another_length_is_refused(bad: bytes) -> None:
    run = together([talk("a", [b""], [1]), talk("b", [b""], [1])])
    next(run)
    with pytest.raises(MalformedMessage, match="joint message"):
        run.send(bad)


def chain(mine: bytes, seen: list[Any]) -> Any:
    """b begins with the exchange after a's first, c at once when a is over."""
    asked: list[int] = []

    def over(name: str, result: Any) -> None:
        seen.append((name, result[1]))

    def ready() -> Any:
        asked.append(len(seen))
        if len(asked) == 1:
            yield talk("nothing", [], []), partial(over, "nothing")
            yield talk("a", [mine, mine], [1, 1]), partial(over, "a")
        if len(asked) == 2:
            yield talk("b", [2 * mine] * 3, [2] * 3), partial(over, "b")
        if len(asked) == 3:
            assert [name for name, _ in seen] == ["nothing", "a"]
            yield talk("c", [3 * mine], [3]), partial(over, "c")

    return flow(ready)


def test_runs_join_a_flow() -> None:
    """Asked before every exchange; messages stand in the order in which their runs began."""
    one, two = list[Any](), list[Any]()
    _, _, sent = drive(chain(b"1", one), chain(b"2", two))
    assert sent == [(1, 1), (3, 3), (5, 5), (2, 2)]
    expected = [("nothing", []), ("a", [b"2"] * 2), ("c", [b"222"]), ("b", [b"22"] * 3)]
    assert one == expected
    assert [name for name, _ in two] == [name for name, _ in expected]
