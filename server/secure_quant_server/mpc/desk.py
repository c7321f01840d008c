"""Party 1's desk in a lane's worker: clients' shares come from the front, answers go back to it.

Most shares are pushed before a job needs them; those that are not are asked for.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

from secure_quant.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedMessage,
    SecureQuantError,
)
from secure_quant.mpc.runtime.jobs import Answer, Ids, Job, require_same
from secure_quant_server.common.messages import error_to_bytes
from secure_quant_server.mpc.messages import Claimed, Failed

__all__ = ["EARLY", "FrontDesk"]

EARLY = 1024
"""Most pushed shares that wait here. The front's own bound is lower unless an operator raised it;
one more is asked for again when a job needs it."""

CLAIM_S = 0.01
"""A job that is answered sooner says with its answer that its shares were taken. Where a lane dies
in that time, its client hears of it from party 0, whose lane loses the session."""

PATIENCE_S = 5.0
"""Beyond the time in which the front answers, for one that does not."""


class Sends(Protocol):
    """The worker's end of its pipe."""

    def send(self, message: Any) -> None:
        """Raises InternalError once the front is gone."""


class FrontDesk:
    """See ``Desk``."""

    def __init__(self, pipe: Sends) -> None:
        self._pipe = pipe
        self._early: dict[str, Job] = {}
        self._wanted: dict[Ids, asyncio.Future[bytes | None]] = {}
        self._untold: dict[Ids, asyncio.TimerHandle] = {}

    @property
    def held(self) -> int:
        """Pushed shares that no job has taken."""
        return len(self._early)

    async def fetch(self, job: Job) -> bytes:
        """The shares of a job. Raises DeadlineExceeded, MalformedMessage, what the front says."""
        if all(each in self._early for each in job.ids):
            return self._claimed(job)
        if job.ids in self._wanted:
            raise MalformedMessage("offer", got="request ids that are offered already")
        self._wanted[job.ids] = asyncio.get_running_loop().create_future()
        self._pipe.send(job)
        try:
            # The front keeps the time; this is for a front that does not answer.
            async with asyncio.timeout(job.wait_s + PATIENCE_S):
                share = await self._wanted[job.ids]
            return self._claimed(job) if share is None else share
        except TimeoutError as error:
            raise DeadlineExceeded("the client's share did not come") from error
        finally:
            del self._wanted[job.ids]
            for each in job.ids:
                self._early.pop(each, None)

    def _claimed(self, job: Job) -> bytes:
        """Pushed shares, taken. One may have been retracted since the job was told of it."""
        found = [self._early.pop(each, None) for each in job.ids]
        there = [each for each in found if each is not None]
        if len(there) < len(found):
            raise DeadlineExceeded("the client gave up", expected="both of its calls to wait")
        require_same(job, there)
        later = asyncio.get_running_loop().call_later
        self._untold[job.ids] = later(CLAIM_S, self._tell_claimed, job.ids)
        return b"".join(each.share for each in there)

    def _tell_claimed(self, ids: Ids) -> None:
        del self._untold[ids]
        with suppress(InternalError):  # the front is gone, and so is who would wait
            self._pipe.send(Claimed(ids))

    def _answered(self, ids: Ids) -> None:
        if (telling := self._untold.pop(ids, None)) is not None:
            telling.cancel()

    def pushed(self, early: Job) -> None:
        """A share of one call that the front hands over unasked."""
        (key,) = early.ids
        if len(self._early) >= EARLY and early.ids not in self._wanted:
            return
        self._early[key] = early
        self.arrived(early.ids, None)

    def retracted(self, key: str) -> None:
        """The client of a pushed share has gone."""
        self._early.pop(key, None)

    def deliver(self, answer: Answer) -> None:
        """Hand an answer to the front."""
        self._answered(answer.ids)
        self._pipe.send(answer)

    def fail(self, job: Job, error: SecureQuantError) -> None:
        """Tell the front why a job has none."""
        self._answered(job.ids)
        self._pipe.send(Failed(job.ids, error_to_bytes(error)))

    def arrived(self, ids: Ids, share: bytes | None, error: SecureQuantError | None = None) -> None:
        """The front's answer to a job that asked; no share if it was pushed meanwhile."""
        waiting = self._wanted.get(ids)
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(share)
        else:
            waiting.set_exception(error)
