"""TLS contexts for servers and clients that are none of gRPC's, from PEM bytes in memory."""

from __future__ import annotations

import os
import ssl
import tempfile
from typing import BinaryIO

from secure_quant.transport.fresh import FreshCredentials
from secure_quant.transport.tls import Credentials

__all__ = ["fresh_context", "tls_context"]


def fresh_context(fresh: FreshCredentials, protocol: str, *, mutual: bool = True) -> ssl.SSLContext:
    """Of a server, whose connections use the certificates that lie there when they begin. Otherwise
    as ``tls_context``."""
    newest = tls_context(ssl.PROTOCOL_TLS_SERVER, fresh.current, protocol, mutual=mutual)

    def begin(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal newest
        found = fresh.look()
        if found is not None:
            newest = tls_context(ssl.PROTOCOL_TLS_SERVER, found, protocol, mutual=mutual)
        tls.context = newest

    first = newest
    first.sni_callback = begin
    return first


def tls_context(
    side: int, credentials: Credentials, protocol: str, *, mutual: bool = True
) -> ssl.SSLContext:
    """TLS 1.3 with the ALPN name ``protocol``. mutual: the peer shows a certificate too, of the
    authorities in ``credentials``; a server may do without, for callers known by a token."""
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=credentials.ca.decode("ascii"))
    context.set_alpn_protocols([protocol])
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    # The binding takes a chain from a file alone; this one has no name and never meets a disk
    # where the system can keep it in memory.
    with _nameless() as file:
        file.write(credentials.cert + b"\n" + credentials.key)
        file.flush()
        file.seek(0)
        context.load_cert_chain(f"/dev/fd/{file.fileno()}")
    return context


def _nameless() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("chain", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()
