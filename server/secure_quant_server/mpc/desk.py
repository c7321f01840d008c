"""Party 1's desk in a lane's worker: clients' shares come from the front, answers go back to it.

Most shares are pushed before a job needs them; those that are not are asked for.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import DeadlineExceeded, MalformedMessage, SecureQuantError
from secure_quant.mpc.runtime.link import Job
from secure_quant.mpc.runtime.session import Answer
from secure_quant_server.common.messages import error_to_bytes
from secure_quant_server.mpc.messages import Answered, Claimed, Early, Failed, Want

__all__ = ["EARLY", "FrontDesk", "answered", "job_ids"]

EARLY = 1024
"""Most pushed shares that wait here. The front's own bound is lower unless an operator raised it;
one more is asked for again when a job needs it."""

PATIENCE_S = 5.0
"""Beyond the time in which the front answers, for one that does not."""

Octets = NDArray[np.uint8]
Ids = tuple[str, ...]
"""Request ids in hexadecimal."""


class Sends(Protocol):
    """The worker's end of its pipe."""

    def send(self, message: Any) -> None:
        """Raises InternalError once the front is gone."""


class FrontDesk:
    """See ``Desk``."""

    def __init__(self, pipe: Sends) -> None:
        self._pipe = pipe
        self._early: dict[str, Early] = {}
        self._wanted: dict[Ids, asyncio.Future[bytes | None]] = {}

    @property
    def held(self) -> int:
        """Pushed shares that no job has taken."""
        return len(self._early)

    async def fetch(self, job: Job) -> Octets:
        """The shares of a job. Raises DeadlineExceeded, MalformedMessage, what the front says."""
        ids = job_ids(job)
        if all(each in self._early for each in ids):
            return self._claimed(job, ids)
        if ids in self._wanted:
            raise MalformedMessage("offer", got="request ids that are offered already")
        self._wanted[ids] = asyncio.get_running_loop().create_future()
        self._pipe.send(Want(ids, job.model_hash, job.batches, job.callers, job.wait_s))
        try:
            # The front keeps the time; this is for a front that does not answer.
            async with asyncio.timeout(job.wait_s + PATIENCE_S):
                body = await self._wanted[ids]
            return self._claimed(job, ids) if body is None else np.frombuffer(body, np.uint8)
        except TimeoutError as error:
            raise DeadlineExceeded("the client's share did not come") from error
        finally:
            del self._wanted[ids]
            for each in ids:
                self._early.pop(each, None)

    def _claimed(self, job: Job, ids: Ids) -> Octets:
        """Pushed shares, taken. One may have been retracted since the job was told of it."""
        found = [self._early.pop(each, None) for each in ids]
        there = [each for each in found if each is not None]
        if len(there) < len(found):
            raise DeadlineExceeded("the client gave up", expected="both of its calls to wait")
        if [(p.model, p.batch) for p in there] != [(job.model_hash, b) for b in job.batches]:
            raise MalformedMessage("request", got="another model or batch at the other party")
        if [each.caller for each in there] != list(job.callers):
            raise MalformedMessage("request", got="another caller at the other party")
        self._pipe.send(Claimed(ids))
        return np.frombuffer(b"".join(each.body for each in there), np.uint8)

    def pushed(self, early: Early) -> None:
        """A share that the front hands over unasked."""
        if len(self._early) >= EARLY and (early.id,) not in self._wanted:
            return
        self._early[early.id] = early
        self.arrived((early.id,), None)

    def retracted(self, key: str) -> None:
        """The client of a pushed share has gone."""
        self._early.pop(key, None)

    def deliver(self, job: Job, answer: Answer) -> None:
        """Hand an answer to the front."""
        self._pipe.send(answered(job, answer))

    def fail(self, job: Job, error: SecureQuantError) -> None:
        """Tell the front why a job has none."""
        self._pipe.send(Failed(job_ids(job), error_to_bytes(error)))

    def arrived(self, ids: Ids, body: bytes | None, error: SecureQuantError | None = None) -> None:
        """The front's answer to a ``Want``; no body if the share was pushed meanwhile."""
        waiting = self._wanted.get(ids)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(body)
        else:
            waiting.set_exception(error)


def job_ids(job: Job) -> Ids:
    """The request ids of a job, as front and worker speak of it."""
    return tuple(each.hex() for each in job.request_ids)


def answered(job: Job, answer: Answer) -> Answered:
    """An answer as a message for the front."""
    return Answered(
        job_ids(job), job.batches, answer.meter.rounds, answer.meter.bytes_sent,
        answer.offline_bytes, int(answer.meter.seconds * 1e6),
        answer.share.astype("<u8", copy=False).tobytes(),
    )  # fmt: skip
