"""A chunk that is encoded without a message is the message's own encoding."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from secure_quant.wire.deal_chunks import Chunk, decode_response, encode_chunk
from secure_quant.wire.gen.dealer_pb2 import DealChunk, DealItem, DealResponse

NUMBERS = st.integers(0, 2**64 - 1)


@given(
    st.text(max_size=70), NUMBERS, NUMBERS, st.binary(min_size=1, max_size=40), st.integers(1, 9)
)
def test_equals_protobufs_own_encoding(model, index, offset, data, times):
    data *= times**5
    chunk = DealChunk(model_hash=model, index=index, offset=offset, data=data)
    expected = DealResponse(chunk=chunk)
    made = encode_chunk(model, index, offset, memoryview(data))
    assert made == expected.SerializeToString(deterministic=True)
    assert DealResponse.FromString(made) == expected
    got = decode_response(made)
    assert isinstance(got, Chunk)
    assert (got.model_hash, got.index, got.offset, got.data) == (model, index, offset, data)
    assert got.data.obj is made  # where it came


def test_other_encodings_of_a_chunk_are_read_as_protobuf_reads_them():
    data = DealChunk(data=b"first").SerializeToString()
    rest = DealChunk(model_hash="m", index=3, offset=2, data=b"last").SerializeToString()
    for chunk in (data + rest, rest + DealChunk(index=9).SerializeToString()):
        encoded = b"\x12" + bytes([len(chunk)]) + chunk  # the chunk is field 2
        expected, got = DealResponse.FromString(encoded), decode_response(encoded)
        assert expected.WhichOneof("message") == "chunk"
        got = got if isinstance(got, Chunk) else got.chunk
        assert got.data == expected.chunk.data == b"last"
        assert (got.index, got.offset) == (expected.chunk.index, 2)


def test_what_is_no_chunk_stays_a_message():
    for made in (DealResponse(item=DealItem(model_hash="m", seed=b"s" * 32)), DealResponse()):
        assert decode_response(made.SerializeToString()) == made


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\x12" + tail))
def test_what_is_malformed_is_refused_as_protobuf_refuses_it(encoded):
    try:
        expected = DealResponse.FromString(encoded)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_response(encoded)
        return
    got = decode_response(encoded)
    if isinstance(got, Chunk):
        chunk = expected.chunk
        assert (got.model_hash, got.index, got.offset) == (
            chunk.model_hash, chunk.index, chunk.offset,
        )  # fmt: skip
        assert got.data == chunk.data
    else:
        assert got == expected
