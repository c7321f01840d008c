"""How clients and parties share an input: a number that both sides of a call state."""

from __future__ import annotations

from secure_quant.errors import MalformedMessage

__all__ = ["SHARING", "check_sharing"]

SHARING = 2
"""XOR shares, a byte an element. Releases that shared inputs mod 2^64 state none (0)."""


def check_sharing(got: int) -> None:
    """Raises MalformedMessage unless the other side of the call shares as this one does."""
    if got != SHARING:
        hint = "client and parties must be of the same release; update the older of them"
        raise MalformedMessage("way of sharing inputs", got=got, expected=SHARING, hint=hint)
