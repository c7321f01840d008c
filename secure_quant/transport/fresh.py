"""Certificates that are replaced while a role runs: new connections use what lies on disk now."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509

from secure_quant.errors import CertificateMismatch, SecureQuantError
from secure_quant.transport.tls import Credentials, ServerPair, Tls, own_role

__all__ = ["FreshCredentials", "SwappedTls", "expiry", "warn_of_expiry"]

_LOG = logging.getLogger("secure_quant.transport")


def expiry(credentials: Credentials) -> datetime:
    """When the first of the own chain ends, or the last of the authorities, where one is known."""
    chain = x509.load_pem_x509_certificates(credentials.cert)
    ends = [each.not_valid_after_utc for each in chain]
    if credentials.ca:
        authorities = x509.load_pem_x509_certificates(credentials.ca)
        ends.append(max(each.not_valid_after_utc for each in authorities))
    return min(ends)


class SwappedTls(Tls):
    """As Tls, of PEM bytes that whoever holds it may replace; for processes that get their keys
    from another one and see no files."""

    __slots__ = ("_now", "_number")

    def __init__(self, first: Tls) -> None:
        super().__init__(first.ca, first.cert, first.key, server_name=first.server_name)
        self.swap(first)

    def swap(self, now: Tls) -> None:
        """From now on. Raises the errors of ``Tls.load``, and then keeps what there was."""
        number = getattr(self, "_number", 0) + 1
        object.__setattr__(self, "_now", now.load())
        object.__setattr__(self, "_number", number)

    def load(self) -> Credentials:
        """The bytes of the last swap; they were checked then."""
        now: Credentials = self._now  # type: ignore[attr-defined]  # set past the frozen class
        return now

    def stamp(self) -> object:
        """Another after a swap."""
        return self._number  # type: ignore[attr-defined]


class FreshCredentials:
    """``current``: the last that fitted together and were of the role that they were at first.

    A rotation that is under way, half of its files new, changes nothing: the old ones stay, one
    line of the log says why, and the next look tries again once a file has changed.
    """

    def __init__(self, tls: Tls | ServerPair) -> None:
        """Raises the errors of ``Tls.load``."""
        self._tls, self._lock = tls, threading.Lock()
        self._stamp = tls.stamp()
        self.current = tls.load()

    def look(self) -> Credentials | None:
        """The new ones if others lie there now, else None. Safe to call from any thread."""
        with self._lock:
            stamp = self._tls.stamp()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                found = self._tls.load()
                _same_role(self.current, found)
            except SecureQuantError as error:
                _say(logging.WARNING, "certificates not taken", reason=str(error))
                return None
            if found == self.current:
                return None
            self.current = found
        _say(logging.INFO, "certificates taken", until=f"{expiry(found):%FT%TZ}")
        return found


def warn_of_expiry(
    credentials: Credentials,
    days: int,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> float:
    """Days that are left; a warning in the log if fewer than ``days``."""
    end = expiry(credentials)
    left = (end - clock()).total_seconds() / 86400
    if left < days:
        _say(logging.WARNING, "certificate ends", until=f"{end:%FT%TZ}", days_left=round(left, 1))
    return left


def _same_role(before: Credentials, now: Credentials) -> None:
    """A certificate that named no role at first need not name one later."""
    try:
        expected = own_role(before)
    except CertificateMismatch:
        return
    if own_role(now).kind != expected.kind:
        raise CertificateMismatch("certificate", got="another role's", expected=str(expected))


def _say(level: int, event: str, **fields: object) -> None:
    _LOG.log(level, event, extra={"fields": fields})
