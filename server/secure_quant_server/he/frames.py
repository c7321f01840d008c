"""What the front and a worker say to each other over a socket pair: fixed heads, raw bytes, no
serializer that could run code.

Start:    front -> worker  COUNT, then per bundle LENGTH and its bytes;
          worker -> front  per bundle a REPLY with its ModelInfo.
Request:  front -> worker  REQUEST(model index, step, batch, length) and the ciphertexts;
          worker -> front  REPLY(kind, length) and the ciphertexts, or a google.rpc.Status.
"""

from __future__ import annotations

import socket
import struct

from secure_quant.errors import SecureQuantError
from secure_quant.wire import to_status

__all__ = [
    "COUNT",
    "ERROR",
    "LENGTH",
    "OK",
    "REPLY",
    "REQUEST",
    "SOCKET_BUFFER",
    "receive",
    "reply",
    "reply_error",
]

COUNT = struct.Struct("<I")
LENGTH = struct.Struct("<Q")
REQUEST = struct.Struct("<IIIQ")
REPLY = struct.Struct("<BQ")
OK, ERROR = 0, 1
SOCKET_BUFFER = 4 * 2**20  # so that a usual layer crosses in one piece


def receive(link: socket.socket, length: int) -> memoryview:
    """The worker's end: exactly ``length`` bytes; the front already refused what is above the
    message limit. Raises EOFError."""
    view, got = memoryview(bytearray(length)), 0
    while got < length:
        more = link.recv_into(view[got:])
        if more == 0:
            raise EOFError
        got += more
    return view


def reply(link: socket.socket, kind: int, body: bytes) -> None:
    """The worker's end: tell the front OK and what was made."""
    link.sendall(REPLY.pack(kind, len(body)) + body)


def reply_error(link: socket.socket, error: SecureQuantError) -> None:
    """The worker's end: tell the front a named error."""
    details = to_status(error)[2][0][1]
    reply(link, ERROR, details if isinstance(details, bytes) else details.encode())
