"""What a party's front and the worker of a lane say to each other.

``ids`` are the request ids of one job, in hexadecimal, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from secure_quant_server.common.messages import Vocabulary

__all__ = [
    "TO_FRONT",
    "TO_WORKER",
    "Answered",
    "Certificates",
    "Claimed",
    "Early",
    "Failed",
    "Infer",
    "Missing",
    "Ready",
    "Retract",
    "Setup",
    "Share",
    "Want",
]


@dataclass(frozen=True, slots=True)
class Setup:
    """First to a worker; see LaneConfig. body: certificates, key and bundles, of ``sizes``."""

    party: int
    link: str
    dealer: str
    options: dict[str, int]
    tls: bool
    server_name: str
    link_protocol: str
    border: str
    sizes: tuple[int, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Certificates:
    """The front: what the next connections use. body: authorities, certificates, key."""

    sizes: tuple[int, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Infer:
    """Party 0's front: run a job. body: its shares."""

    ids: tuple[str, ...]
    model: str
    batches: tuple[int, ...]
    callers: tuple[str, ...]
    wait_s: float
    body: bytes


@dataclass(frozen=True, slots=True)
class Early:
    """Party 1's front: a client's share, before a job asks for it."""

    id: str
    model: str
    batch: int
    caller: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Retract:
    """Party 1's front: a share that was handed over early is not wanted any more."""

    id: str


@dataclass(frozen=True, slots=True)
class Want:
    """Party 1's worker: the shares of a job, please."""

    ids: tuple[str, ...]
    model: str
    batches: tuple[int, ...]
    callers: tuple[str, ...]
    wait_s: float


@dataclass(frozen=True, slots=True)
class Share:
    """Party 1's front: the shares that were wanted."""

    ids: tuple[str, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Missing:
    """Party 1's front: why they do not come. body: google.rpc.Status."""

    ids: tuple[str, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """Party 1's worker took shares that were handed over early."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A job's output shares and what they cost."""

    ids: tuple[str, ...]
    batches: tuple[int, ...]
    rounds: int
    bytes_sent: int
    offline_bytes: int
    microseconds: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """A job has no answer. body: google.rpc.Status."""

    ids: tuple[str, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """Whether the lane is in session."""

    ready: bool


TO_WORKER = Vocabulary(Setup, Certificates, Infer, Early, Retract, Share, Missing)
TO_FRONT = Vocabulary(Want, Claimed, Answered, Failed, Ready)
