"""Party 1's board: clients' shares that wait until party 0's lane asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secure_quant.errors import DeadlineExceeded, MalformedMessage, Overloaded, SecureQuantError
from secure_quant.mpc.runtime.jobs import Answer, Job, require_same

__all__ = ["Board", "Posted"]


@dataclass
class Posted:
    """One client's call and the answer it waits for. share: makes the job's, once it is fetched: a
    seed of 32 bytes stays one until then. held: bytes that are kept meanwhile."""

    job: Job
    share: Callable[[], bytes]
    held: int
    answer: asyncio.Future[Answer]
    claimed: bool = False


class Board:
    """Shares by request id, in hexadecimal. Bounded in entries and bytes."""

    def __init__(self, entries: int, size: int) -> None:
        self._entries, self._size = entries, size
        self._posted: dict[str, Posted] = {}
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._posted)

    def post(self, job: Job, share: Callable[[], bytes], held: int) -> asyncio.Future[Answer]:
        """Put up one call's share; the future is its answer. Raises Overloaded,
        MalformedMessage."""
        (key,) = job.ids
        if len(self._posted) >= self._entries or self._bytes + held > self._size:
            raise Overloaded("requests that wait for the other party", got=len(self._posted))
        if key in self._posted:
            raise MalformedMessage("request id", got="one that is being served")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._posted[key] = Posted(job, share, held, answer)
        self._bytes += held
        wanted = self._wanted.get(key)
        if wanted is not None and not wanted.done():
            wanted.set_result(None)
        return answer

    def claim(self, keys: Sequence[str]) -> None:
        """A lane took shares that were pushed to it; they are not given out again."""
        for key in keys:
            if key in self._posted:
                self._posted[key].claimed = True

    def claimed(self, key: str) -> bool:
        """True once a lane has the share."""
        posted = self._posted.get(key)
        return posted is not None and posted.claimed

    def remove(self, key: str) -> None:
        """Forget a share: answered, or its client gave up."""
        posted = self._posted.pop(key, None)
        if posted is not None:
            self._bytes -= posted.held
            if posted.answer.done() and not posted.answer.cancelled():
                posted.answer.exception()  # a client that left just now need not look at it

    async def fetch(self, job: Job) -> bytes:
        """The shares of one job, joined; each is given out once.

        Raises DeadlineExceeded if one does not come in ``job.wait_s`` seconds, MalformedMessage if
        the two parties were sent different things under the same id.
        """
        try:
            async with asyncio.timeout(job.wait_s):
                posted = [await self._get(key) for key in job.ids]
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the other party did not get the client's second share",
                got=f"{job.wait_s:.1f} s waited",
            ) from error
        require_same(job, [each.job for each in posted])
        if any(each.claimed for each in posted):
            raise MalformedMessage("request id", got="one that is being served")
        for each in posted:
            each.claimed = True
        return b"".join(each.share() for each in posted)

    def settle(self, key: str, answer: Answer | SecureQuantError) -> None:
        """Hand an answer to the client that waits for it, if it still does."""
        posted = self._posted.get(key)
        if posted is None or posted.answer.done():
            return
        if isinstance(answer, SecureQuantError):
            posted.answer.set_exception(answer)
        else:
            posted.answer.set_result(answer)

    async def _get(self, key: str) -> Posted:
        if key not in self._posted:
            if key in self._wanted:
                raise MalformedMessage("request id", got="one that is offered already")
            self._wanted[key] = asyncio.get_running_loop().create_future()
            try:
                await self._wanted[key]
            finally:
                del self._wanted[key]
        posted = self._posted.get(key)
        if posted is None:
            raise DeadlineExceeded("the client gave up", expected="both of its calls to wait")
        return posted
