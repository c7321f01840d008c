"""One inference on its way through a party: what is asked, and what comes of it.

Front, pipe, lane and link all speak of these two; the wire's own forms (InferRequest, LinkBegin,
InferResponse) stay at its borders. Light: nothing that serves is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from secure_quant.errors import MalformedMessage

__all__ = ["Answer", "Ids", "Job", "require_same"]

Ids = tuple[str, ...]
"""Request ids in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Job:
    """One inference: of one client's call, or of several that were joined.

    model    its hash.
    ids      the calls' request ids, none for a rehearsal; batches: samples of each.
    callers  who made each; the two parties must agree.
    wait_s   how long party 1 may wait for the clients' shares.
    share    this party's shares of the inputs, a byte an element, one call after the other; empty
             where they are not here.
    trace    where the first call's spans go below: see secure_quant.tracing.
    """

    model: str
    ids: Ids
    batches: tuple[int, ...]
    callers: tuple[str, ...] = ()
    wait_s: float = 0.0
    share: bytes = field(default=b"", repr=False)
    trace: str = ""

    @property
    def samples(self) -> int:
        return sum(self.batches)

    @staticmethod
    def join(jobs: Sequence[Job], wait_s: float) -> Job:
        """Jobs of one model as one, which waits for ``wait_s``."""
        return Job(
            jobs[0].model,
            tuple(each for job in jobs for each in job.ids),
            tuple(each for job in jobs for each in job.batches),
            tuple(each for job in jobs for each in job.callers),
            wait_s,
            b"".join(job.share for job in jobs),
            jobs[0].trace,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """This party's output share of a job, and what it cost this party.

    ids, batches   the job's.
    rounds         exchanges with the other party; bytes_sent: their payload, of one direction.
    offline_bytes  of dealt material.
    microseconds   from the protocol's first to its last step.
    share          uint64 little-endian, row-major [samples, *output shape].
    """

    ids: Ids
    batches: tuple[int, ...]
    rounds: int
    bytes_sent: int
    offline_bytes: int
    microseconds: int
    share: bytes = field(repr=False)

    def split(self) -> list[Answer]:
        """The part of each call, in order; rounds and time are those of the whole."""
        samples = sum(self.batches)
        row = len(self.share) // samples
        parts, start = [], 0
        for each, batch in zip(self.ids, self.batches, strict=True):
            stop = start + row * batch
            parts.append(replace(
                self, ids=(each,), batches=(batch,), share=self.share[start:stop],
                bytes_sent=self.bytes_sent * batch // samples,
                offline_bytes=self.offline_bytes * batch // samples,
            ))  # fmt: skip
            start = stop
        return parts


def require_same(job: Job, calls: Sequence[Job]) -> None:
    """``calls``: what this party was sent, in order, of the job that the other party names. Raises
    MalformedMessage."""
    if [(each.model, each.batches) for each in calls] != [(job.model, (b,)) for b in job.batches]:
        raise MalformedMessage("request", got="another model or batch at the other party")
    if [each.callers for each in calls] != [(each,) for each in job.callers]:
        raise MalformedMessage("request", got="another caller at the other party")
