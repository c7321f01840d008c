"""A chunk that is encoded without a message is the message's own encoding."""

from hypothesis import given
from hypothesis import strategies as st

from secure_quant.wire.deal_chunks import encode_chunk
from secure_quant.wire.gen.dealer_pb2 import DealChunk, DealResponse

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
