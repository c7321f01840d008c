"""Joint protocols side by side."""

from __future__ import annotations

from typing import Any

import pytest

from secure_quant.errors import MalformedMessage
from secure_quant.onehost.exchange import swap, together
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
