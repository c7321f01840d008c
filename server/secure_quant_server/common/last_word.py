"""The kernel ends a worker that has had no word of its front for too long, whatever it is doing.

A worker that hangs cannot see its front's end, and the template, which would end it then, may have
gone before. So each worker runs a timer that nothing in it needs to attend to: SIGALRM keeps its
default action. Each beat of the front winds it up again.
"""

from __future__ import annotations

import signal

__all__ = ["renew", "start"]


def start(seconds: float) -> None:
    """From now on the process ends unless ``renew`` is called every ``seconds``."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


def renew() -> None:
    """The front has spoken. Does nothing in a process that was not started with a timer."""
    _, seconds = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
