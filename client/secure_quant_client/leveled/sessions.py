"""What a leveled client keeps between inferences, a session under its present secret key, and the
programs that use it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from secure_quant.errors import ImplausibleAnswer, SessionNotFound
from secure_quant_client.leveled.model import Floats, LeveledSession, RemoteLeveled
from secure_quant_client.program import Call, Program
from secure_quant_client.stats import Inference

__all__ = ["Sessions"]

ATTEMPTS = 2
"""A session that the server no longer knows is opened again, once."""


class Sessions:
    """current: the session, if there is one. key_bytes_up: evaluation keys uploaded so far. One
    program at a time."""

    def __init__(self) -> None:
        self.current: LeveledSession | None = None
        self.key_bytes_up = 0

    def renew(self) -> None:
        """Forget the secret key."""
        self.current = None

    def infer(
        self, model: RemoteLeveled, x: ArrayLike, start: float
    ) -> Program[Inference[np.float64]]:
        """float[batch, ...] -> float64[batch, out], since ``start`` (``perf_counter``).

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange, MalformedMessage, ImplausibleAnswer.
        """
        made: list[Floats] = []
        for part in model.parts(x):
            made.append((yield from self._answered(model, part)))  # noqa: PERF401  it yields
        y = np.concatenate(made)
        return Inference(y, model.stats(start, len(y), len(made)))

    def _answered(self, model: RemoteLeveled, x: Floats) -> Program[Floats]:
        for attempt in range(1, ATTEMPTS + 1):
            session = yield from self.opened(model, len(x))
            try:
                (answer,) = yield [Call("EvaluateModel", session.request(x))]
                break
            except SessionNotFound:
                self._give_up(session)  # the server restarted or needed the room
                if attempt == ATTEMPTS:
                    raise
        try:
            return session.open(answer.ciphertexts, len(x))
        except ImplausibleAnswer:
            self._give_up(session)  # whatever it tells of this key is of no use
            raise

    def opened(self, model: RemoteLeveled, samples: int = 1) -> Program[LeveledSession]:
        """A session that may still be asked ``samples``, its keys uploaded."""
        session = self.current
        if session is None or session.left < samples:
            self.renew()
            session = model.new_session()
            (answer,) = yield [Call("OpenSession", session.upload())]
            self.key_bytes_up += session.opened(answer.session_id)
            self.current = session
        return session

    def _give_up(self, session: LeveledSession) -> None:
        """Unless another has taken its place: a step that nobody waits for may end late."""
        if self.current is session:
            self.renew()
