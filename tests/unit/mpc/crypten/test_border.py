"""CrypTen's types at the borders of our own inference."""

import numpy as np
import torch

from secure_quant.mpc.crypten.compat import ArithmeticSharedTensor, BinarySharedTensor
from secure_quant.mpc.crypten.session import from_binary, from_shared, to_binary, to_shared
from secure_quant_client.mpc.sharing import share
from secure_quant_server.mpc.crypten_border import crypten_border


def test_input_shares_pass_as_a_binary_shared_tensor() -> None:
    q = np.arange(-128, 128, dtype=np.int8).reshape(2, 8, 16)
    parts = share(q)
    held = [to_binary(part) for part in parts]
    assert all(isinstance(each, BinarySharedTensor) for each in held)
    opened = held[0].share ^ held[1].share  # how CrypTen reveals the type
    assert torch.equal(opened.to(torch.uint8).view(torch.int8), torch.from_numpy(q))
    for part, each in zip(parts, held, strict=True):
        assert from_binary(each).dtype == np.uint8
        assert np.array_equal(from_binary(each), part)
        assert np.array_equal(crypten_border(part), part)


def test_output_shares_pass_as_an_arithmetic_shared_tensor() -> None:
    y = np.array([[-(2**63), -1, 0, 1, 2**63 - 1]])
    first = np.random.default_rng(1).integers(0, 2**64, y.shape, np.uint64)
    parts = first, y.view(np.uint64) - first
    held = [to_shared(part) for part in parts]
    assert all(isinstance(each, ArithmeticSharedTensor) for each in held)
    assert torch.equal(held[0].share + held[1].share, torch.from_numpy(y))
    for part, each in zip(parts, held, strict=True):
        assert np.array_equal(from_shared(each), part)
        assert crypten_border(part).dtype == np.uint64
        assert np.array_equal(crypten_border(part), part)
