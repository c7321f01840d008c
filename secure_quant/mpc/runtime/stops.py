"""Inferences that are given up before they end, because their clients have gone.

Whichever party notices says so on the link in place of its next payload, the other answers alike,
and nothing of the inference is on the way any more. What ran of it has used its material up; what
was not begun is there for the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from secure_quant.errors import DeadlineExceeded
from secure_quant.mpc.runtime.jobs import Ids

__all__ = ["Stop", "Stopped", "Stops", "gone"]


class Stopped(Exception):
    """Both parties have given an inference up."""


def gone() -> DeadlineExceeded:
    """What whoever still waits is told."""
    return DeadlineExceeded("the client gave up", expected="both of its calls to wait")


@dataclass(eq=False)
class Stop:
    """Of one job. accepted: party 0 knows that the other runs it, or will. here: nobody waits for
    it at this party. said: the other party was told so. there: the other party said so."""

    ids: Ids = ()
    accepted: bool = False
    here: bool = False
    said: bool = False
    there: bool = False


class Stops:
    """Of all jobs of a session that are under way."""

    def __init__(self) -> None:
        self._jobs: dict[Ids, Stop] = {}
        self._of: dict[str, Ids] = {}
        self._gone: set[str] = set()

    def open(self, ids: Ids) -> Stop:
        """For a job that is new."""
        self._of.update(dict.fromkeys(ids, ids))
        made = self._jobs[ids] = Stop(ids)
        return made

    def of(self, ids: Ids) -> Stop | None:
        """None once it was closed."""
        return self._jobs.get(ids)

    def close(self, ids: Ids) -> None:
        """The job is over."""
        self._jobs.pop(ids, None)
        for key in ids:
            self._of.pop(key, None)
            self._gone.discard(key)

    def left(self, key: str) -> Stop | None:
        """The client of one request has gone: its job's, if that was the last."""
        ids = self._of.get(key)
        if ids is None:
            return None
        self._gone.add(key)
        if not self._gone.issuperset(ids):
            return None
        stop = self._jobs[ids]
        stop.here = True
        return stop
