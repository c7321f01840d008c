"""What the front and a worker say to each other over a socket pair: fixed heads, raw bytes, no
serializer that could run code.

Start:    front -> worker  COUNT, then per bundle LENGTH and its bytes;
          worker -> front  per bundle a REPLY with its ModelInfo.
Request:  front -> worker  REQUEST(model index, step, batch, length) and the ciphertexts;
          worker -> front  REPLY(kind, length) and the ciphertexts, or a google.rpc.Status.
"""

from __future__ import annotations

import struct

__all__ = ["COUNT", "ERROR", "LENGTH", "OK", "REPLY", "REQUEST", "SOCKET_BUFFER"]

COUNT = struct.Struct("<I")
LENGTH = struct.Struct("<Q")
REQUEST = struct.Struct("<IIIQ")
REPLY = struct.Struct("<BQ")
OK, ERROR = 0, 1
SOCKET_BUFFER = 4 * 2**20  # so that a usual layer crosses in one piece
