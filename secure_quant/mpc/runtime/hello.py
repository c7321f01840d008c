"""What both sides of a link say first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from secure_quant.errors import HashMismatch, MalformedMessage
from secure_quant.mpc.runtime.link import PROTOCOL
from secure_quant.wire.gen.party_link_pb2 import LinkHello

if TYPE_CHECKING:
    from secure_quant.mpc.protocol.party import PartyProgram

__all__ = ["check_hello", "make_hello"]


def make_hello(session_id: bytes, lane: int, programs: Mapping[str, PartyProgram]) -> LinkHello:
    """What this side of a lane says first."""
    return LinkHello(
        protocol=PROTOCOL, session_id=session_id, lane=lane, model_hashes=sorted(programs),
        stops=True,
    )  # fmt: skip


def check_hello(hello: LinkHello, lane: int, programs: Mapping[str, PartyProgram]) -> None:
    """Raises MalformedMessage or HashMismatch if the peer's lane cannot be paired with this one."""
    if hello.protocol != PROTOCOL:
        raise MalformedMessage("link protocol", got=hello.protocol, expected=PROTOCOL)
    if hello.lane != lane:
        raise MalformedMessage("lane", got=hello.lane, expected=lane)
    if len(hello.session_id) != 16:
        raise MalformedMessage("session id", got=f"{len(hello.session_id)} bytes", expected="16")
    theirs = [model[:64] for model in hello.model_hashes[:64]]
    if theirs != sorted(programs):
        short = [model[:12] for model in theirs]
        raise HashMismatch(
            "the parties serve different models",
            got=short, expected=[model[:12] for model in sorted(programs)],
        )  # fmt: skip
