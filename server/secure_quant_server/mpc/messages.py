"""What a party's front and the worker of a lane say to each other.

A ``Job`` is, to party 0's worker, what to run; to party 1's worker a client's share before an offer
asks for it, of one call; to party 1's front the question for shares that are not here. An
``Answer`` is a job's. ``ids`` are the request ids of one job, in hexadecimal, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secure_quant.mpc.runtime.jobs import Answer, Ids, Job
from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant_server.common.messages import Parts, Vocabulary

__all__ = [
    "TO_FRONT",
    "TO_WORKER",
    "Certificates",
    "Claimed",
    "Drop",
    "Failed",
    "Place",
    "Ready",
    "Retract",
    "Setup",
    "Share",
    "Step",
    "Watch",
]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which lane it is. link: the peer's address (party 0) or where to listen (party 1)."""

    party: int
    lane: int
    link: str
    dealer: str


@dataclass(frozen=True, slots=True)
class Setup:
    """First to a worker; see LaneConfig. body: certificates, key and bundles, of ``sizes``."""

    place: Place
    options: LaneOptions
    tls: bool
    server_name: str
    sizes: tuple[int, ...]
    body: bytes | memoryview | Parts = field(repr=False)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The front: what the next connections use. body: authorities, certificates, key."""

    sizes: tuple[int, ...]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Retract:
    """Party 1's front: a share that was handed over early is not wanted any more."""

    id: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A front: the client of this request has gone, wherever the request is."""

    id: str


@dataclass(frozen=True, slots=True)
class Share:
    """Party 1's front: the shares that were wanted."""

    ids: Ids
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Watch:
    """A front: somebody wants to hear of this request while it runs, or does no longer."""

    id: str
    on: bool


@dataclass(frozen=True, slots=True)
class Step:
    """So many rounds of a job that is watched are done."""

    ids: Ids
    rounds: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """Party 1's worker took shares that were handed over early, and has no answer yet."""

    ids: Ids


@dataclass(frozen=True, slots=True)
class Failed:
    """A job has no answer; from party 1's front: the shares that were wanted do not come. body:
    google.rpc.Status."""

    ids: Ids
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ready:
    """Whether the lane is in session."""

    ready: bool


TO_WORKER = Vocabulary(Setup, Certificates, Job, Retract, Drop, Watch, Share, Failed)
TO_FRONT = Vocabulary(Job, Claimed, Answer, Failed, Ready, Step)
