"""The stream to the host: frames out in order, frames in to whoever waits for them."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import grpc

from secure_quant.errors import (
    DeadlineExceeded,
    MalformedMessage,
    PeerUnavailable,
    SecureQuantError,
)
from secure_quant.onehost.stream import Course, Inbox
from secure_quant.wire import raised
from secure_quant.wire.gen.one_host_pb2 import PairRequest, PairResponse
from secure_quant.wire.gen.one_host_pb2_grpc import OneHostServiceStub
from secure_quant_client.driver import Metadata

__all__ = ["Link"]

UNASKED = 4
"""Frames of no run that may lie unread; honest hosts send one for each request."""


class Link:
    """One stream on a channel of its own, which ends with it. A thread reads."""

    def __init__(
        self, channel: grpc.Channel, metadata: Metadata, ended: Callable[[], None]
    ) -> None:
        """ended: called once, in any thread, when it has."""
        self._channel, self._ended = channel, ended
        self._outgoing: SimpleQueue[PairRequest | None] = SimpleQueue()
        self._control: SimpleQueue[PairResponse | None] = SimpleQueue()
        self._inboxes: dict[str, Inbox | Course[Any]] = {"ahead": Inbox(0), "online": Inbox(0)}
        self._error: SecureQuantError | None = None
        self._lock = Lock()
        self._call: Any = OneHostServiceStub(channel).Pair(
            iter(self._outgoing.get, None), metadata=metadata, wait_for_ready=False
        )
        Thread(target=self._read, name="one-host-link", daemon=True).start()

    @property
    def error(self) -> SecureQuantError | None:
        """Why it ended; None while it lives."""
        return self._error

    def send(self, frame: PairRequest) -> None:
        """Does not wait."""
        self._outgoing.put(frame)

    def listen(self, run: str, total: int) -> Inbox:
        """For a run that begins, "ahead" or "online". Raises what ended the link."""
        inbox = Inbox(total)
        self.hear(run, inbox)
        return inbox

    def hear(self, run: str, whoever: Inbox | Course[Any]) -> None:
        """From now on what comes for ``run`` is fed to ``whoever``. Raises as ``listen``."""
        with self._lock:
            if self._error is not None:
                raise self._error
            self._inboxes[run] = whoever

    def answered(self, seconds: float) -> PairResponse:
        """The next frame that is of no run. Raises what ended the link, DeadlineExceeded."""
        try:
            found = self._control.get(timeout=seconds)
        except Empty as error:
            raise DeadlineExceeded("the host's answer", expected=f"{seconds:.3g} s") from error
        if found is None:
            self._control.put(None)
            raise self._error or PeerUnavailable("the host ended the pairing")
        return found

    def end(self, error: SecureQuantError) -> None:
        """Whoever waits is told; nothing goes out any more. The first error counts."""
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            inboxes = list(self._inboxes.values())
        for inbox in inboxes:
            inbox.fail(error)
        self._control.put(None)
        self._outgoing.put(None)
        self._call.cancel()
        self._channel.close()
        self._ended()

    def _read(self) -> None:
        try:
            for frame in self._call:
                self._heard(frame)
            self.end(PeerUnavailable("the host ended the pairing"))
        except grpc.RpcError as error:
            self.end(raised(error))
        except SecureQuantError as error:
            self.end(error)

    def _heard(self, frame: PairResponse) -> None:
        """Raises MalformedMessage."""
        kind = frame.WhichOneof("message")
        if kind is None:
            raise MalformedMessage("frame of a pairing", got="none known")
        if kind in self._inboxes:
            self._inboxes[kind].feed(getattr(frame, kind))
        elif self._control.qsize() >= UNASKED:
            raise MalformedMessage("frame of a pairing", got=f"{kind}, which nobody asked for")
        else:
            self._control.put(frame)
