"""Forked processes. A client belongs to the process that made it: gRPC's connections do not live on
in a child, and no secret key may serve two processes. A child that uses what it inherited is told
so at once, and its copies of keys are dropped as it is born."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

from secure_quant.errors import ConfigError

__all__ = ["forgotten_by_children", "require_own"]


class Forgetful(Protocol):
    """Runs in a child, where only the thread that forked lives on and locks may be held for ever:
    replaces locks and drops secrets."""

    def forget(self) -> None: ...


_KNOWN: WeakSet[Forgetful] = WeakSet()


def forgotten_by_children(holder: Forgetful) -> None:
    """Call ``holder.forget`` in every process forked from this one, while it lives."""
    _KNOWN.add(holder)


def require_own(what: str, process: int) -> None:
    """Raises ConfigError unless this is the process whose id ``process`` is."""
    if os.getpid() != process:
        raise ConfigError(
            what, got="a forked process", expected="the one that made it",
            hint="make a client in each process, and fork or spawn before the first",
        )  # fmt: skip


def _forget() -> None:
    for holder in list(_KNOWN):
        holder.forget()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget)
