"""Party 1's desk in a lane's worker: clients' shares come from the front, answers go back to it.

Most shares are pushed before a job needs them; those that are not are asked for.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import (
    DeadlineExceeded,
    MalformedMessage,
    SecureQuantError,
)
from secure_quant.mpc.runtime.link import Job
from secure_quant.mpc.runtime.session import Answer
from secure_quant_server.mpc.pipe import error_to_fields

__all__ = ["EARLY", "FrontDesk", "answer_figures", "job_key"]

EARLY = 1024
"""Most pushed shares that wait here. The front's own bound is lower unless an operator raised it;
one more is asked for again when a job needs it."""

PATIENCE_S = 5.0
"""Beyond the time in which the front answers, for one that does not."""

Octets = NDArray[np.uint8]


class Sends(Protocol):
    """The worker's end of its pipe."""

    def send(self, fields: dict[str, Any], body: bytes | memoryview = b"") -> None:
        """Raises InternalError once the front is gone."""


@dataclass(frozen=True, slots=True)
class _Pushed:
    model: str
    batch: int
    caller: str
    share: bytes


class FrontDesk:
    """See ``Desk``. Keys are request ids in hexadecimal, joined by commas."""

    def __init__(self, pipe: Sends) -> None:
        self._pipe = pipe
        self._early: dict[str, _Pushed] = {}
        self._wanted: dict[str, asyncio.Future[bytes | None]] = {}

    @property
    def held(self) -> int:
        """Pushed shares that no job has taken."""
        return len(self._early)

    async def fetch(self, job: Job) -> Octets:
        """The shares of a job. Raises DeadlineExceeded, MalformedMessage, what the front says."""
        key = job_key(job)
        if all(each in self._early for each in key.split(",")):
            return self._claimed(job, key)
        if key in self._wanted:
            raise MalformedMessage("offer", got="request ids that are offered already")
        self._wanted[key] = asyncio.get_running_loop().create_future()
        self._pipe.send({
            "kind": "want", "ids": key, "model": job.model_hash, "batches": job.batches,
            "callers": job.callers, "wait_s": job.wait_s,
        })  # fmt: skip
        try:
            # The front keeps the time; this is for a front that does not answer.
            body = await asyncio.wait_for(self._wanted[key], job.wait_s + PATIENCE_S)
            return self._claimed(job, key) if body is None else np.frombuffer(body, np.uint8)
        except TimeoutError as error:
            raise DeadlineExceeded("the client's share did not come") from error
        finally:
            del self._wanted[key]
            for each in key.split(","):
                self._early.pop(each, None)

    def _claimed(self, job: Job, key: str) -> Octets:
        """Pushed shares, taken. One may have been retracted since the job was told of it."""
        found = [self._early.pop(each, None) for each in key.split(",")]
        there = [each for each in found if each is not None]
        if len(there) < len(found):
            raise DeadlineExceeded("the client gave up", expected="both of its calls to wait")
        if [(p.model, p.batch) for p in there] != [(job.model_hash, b) for b in job.batches]:
            raise MalformedMessage("request", got="another model or batch at the other party")
        if [each.caller for each in there] != list(job.callers):
            raise MalformedMessage("request", got="another caller at the other party")
        self._pipe.send({"kind": "claimed", "ids": key})
        return np.frombuffer(b"".join(each.share for each in there), np.uint8)

    def pushed(self, fields: dict[str, Any], share: bytes) -> None:
        """A share that the front hands over unasked."""
        key = fields["ids"]
        if len(self._early) >= EARLY and key not in self._wanted:
            return
        self._early[key] = _Pushed(fields["model"], fields["batches"][0], fields["caller"], share)
        self.arrived(key, None, None)

    def retracted(self, key: str) -> None:
        """The client of a pushed share has gone."""
        self._early.pop(key, None)

    def deliver(self, job: Job, answer: Answer) -> None:
        """Hand an answer to the front."""
        self._pipe.send(*answer_figures(job, answer))

    def fail(self, job: Job, error: SecureQuantError) -> None:
        """Tell the front why a job has none."""
        self._pipe.send({"kind": "failed", "ids": job_key(job), **error_to_fields(error)})

    def arrived(self, key: str, body: bytes | None, error: SecureQuantError | None) -> None:
        """The front's answer to a ``want``; no body if the share was pushed meanwhile."""
        waiting = self._wanted.get(key)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(body)
        else:
            waiting.set_exception(error)


def job_key(job: Job) -> str:
    """The request ids of a job, as front and worker speak of it."""
    return ",".join(each.hex() for each in job.request_ids)


def answer_figures(job: Job, answer: Answer) -> tuple[dict[str, Any], bytes]:
    """An answer as a frame for the front."""
    fields = {
        "kind": "answer",
        "ids": job_key(job),
        "batches": job.batches,
        "rounds": answer.meter.rounds,
        "sent": answer.meter.bytes_sent,
        "offline": answer.offline_bytes,
        "us": int(answer.meter.seconds * 1e6),
    }
    return fields, answer.share.astype("<u8", copy=False).tobytes()
