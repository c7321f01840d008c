"""Chunks of material as they lie on the wire, without the copies that a message object costs.

A chunk is a megabyte, and thousands a minute leave the dealer. Protobuf copies its bytes into a
message, and again into the encoding; here they are copied once. The result is the very encoding of
``DealResponse(chunk=DealChunk(...))``.
"""

from __future__ import annotations

from secure_quant.wire.gen.dealer_pb2 import DealChunk, DealResponse

__all__ = ["encode_chunk"]

_LENGTH_DELIMITED = 2  # wire type of a field that starts with its length


def encode_chunk(model_hash: str, index: int, offset: int, data: bytes | memoryview) -> bytes:
    """The encoded response. ``data`` is not empty."""
    head = DealChunk(model_hash=model_hash, index=index, offset=offset).SerializeToString()
    # The bytes are the chunk's last field, and the chunk is the response's only one.
    body = _opened(_DATA, len(data))
    return b"".join((_opened(_CHUNK, len(head) + len(body) + len(data)), head, body, data))


def _opened(field: int, length: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


_DATA = DealChunk.DESCRIPTOR.fields_by_name["data"].number
_CHUNK = DealResponse.DESCRIPTOR.fields_by_name["chunk"].number
