"""Each op against torch in float64 or int64, on drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.builder import Net
from secure_quant import reference

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def _run(net: Net, batch: int = 3) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    graph = net.done()
    q = net.rng.integers(-128, 128, (batch, *graph.input.shape)).astype(np.int8)
    return q.astype(np.int64) - graph.input.zero_point, reference.trace(graph, q)


def _float(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64))


@few
@given(seeds, st.integers(1, 20), st.integers(1, 9), st.booleans(), st.integers(-128, 127))
def test_linear(seed, inner, out, bias, zero_point):
    net = Net(seed, (2, inner), zero_point=zero_point)
    name = net.linear(out, bias=bias)
    x, values = _run(net)
    b = _float(net.parameters[f"{name}.bias"]) if bias else None
    want = torch.nn.functional.linear(_float(x), _float(net.parameters[f"{name}.weight"]), b)
    np.testing.assert_array_equal(values[name], want.numpy())


@few
@given(
    seeds,
    st.sampled_from([(1, 1, 1), (3, 4, 1), (4, 6, 2), (3, 3, 3), (2, 6, 2)]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_conv2d(seed, channels, kernel, stride, padding, dilation):
    into, out, groups = channels
    net = Net(seed, (into, 7, 8), zero_point=seed % 256 - 128)
    name = net.conv(out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    x, values = _run(net)
    want = torch.nn.functional.conv2d(
        _float(x), _float(net.parameters[f"{name}.weight"]), _float(net.parameters[f"{name}.bias"]),
        stride, padding, dilation, groups,
    )  # fmt: skip
    np.testing.assert_array_equal(values[name], want.numpy())


@few
@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_pools(seed, height, width, stride, padded):
    padding = (height // 2, width // 2) if padded else (0, 0)
    window = ((height, width), (stride, stride), padding)
    net = Net(seed, (3, 6, 7), zero_point=seed % 256 - 128)
    name = net.max_pool(*window)
    x, values = _run(net)
    want = torch.nn.functional.max_pool2d(_float(x), *window)
    np.testing.assert_array_equal(values[name] - net.zero[name], want.numpy())

    net = Net(seed, (3, 6, 7), zero_point=seed % 256 - 128)
    name = net.sum_pool(*window)
    x, values = _run(net)
    want = torch.nn.functional.avg_pool2d(_float(x), *window, divisor_override=1)
    np.testing.assert_array_equal(values[name], want.numpy())


@few
@given(seeds, st.booleans(), st.integers(1, 5), st.integers(1, 5))
def test_matmul(seed, transpose_b, rows, inner):
    net = Net(seed, (2, rows, inner), zero_point=-7)
    other = "x" if transpose_b else net.transpose(0, 2, 1)
    name = net.matmul("x", other, transpose_b=transpose_b)
    x, values = _run(net)
    want = torch.from_numpy(x) @ torch.from_numpy(x).transpose(-1, -2)
    np.testing.assert_array_equal(values[name], want.numpy())


@few
@given(seeds, st.integers(-99, 99), st.integers(-99, 99))
def test_add_mul_and_reductions(seed, f, g):
    net = Net(seed, (3, 4, 5), zero_point=31)
    top = net.reduce_max()
    net.mul("x", top)
    product = net.head
    a = net.requantize(zero_point=-9)
    both = net.add("x", a, (f, g))
    b = net.requantize()
    total = net.reduce_sum()
    x, values = _run(net)
    hat = torch.from_numpy(x)
    np.testing.assert_array_equal(values[top] - 31, hat.amax(-1, keepdim=True))
    np.testing.assert_array_equal(values[product], hat * hat.amax(-1, keepdim=True))
    np.testing.assert_array_equal(values[both], f * hat + g * (torch.from_numpy(values[a]) + 9))
    np.testing.assert_array_equal(values[total], torch.from_numpy(values[b]).sum(-1, True))


def test_moves():
    net = Net(3, (2, 3, 4))
    turned = net.transpose(2, 0, 1)
    flat = net.reshape(6, 4)
    part = net.slice(0, 1, 6, 2)
    joined = net.concat(1, part, part)
    q = np.arange(-24, 24).reshape(2, 2, 3, 4).astype(np.int8)
    values = reference.trace(net.done(), q)
    t = torch.from_numpy(q.astype(np.int64))
    want = t.permute(0, 3, 1, 2)
    np.testing.assert_array_equal(values[turned], want)
    want = want.reshape(2, 6, 4)
    np.testing.assert_array_equal(values[flat], want)
    np.testing.assert_array_equal(values[part], want[:, 1:6:2])
    np.testing.assert_array_equal(values[joined], torch.cat([want[:, 1:6:2]] * 2, 2))


@pytest.mark.parametrize("batch", [1, 2, 5, 33])
def test_a_batch_is_its_samples_one_by_one(batch, monkeypatch):
    """Also where a convolution works through the batch in several parts."""
    monkeypatch.setattr("secure_quant.reference.kernels._COLUMNS", 7000)
    net = Net(1, (3, 9, 9))
    net.conv(4, (3, 3), padding=(1, 1))
    net.requantize()
    net.max_pool((2, 2), (2, 2))
    graph = net.done()
    q = net.rng.integers(-128, 128, (batch, 3, 9, 9)).astype(np.int8)
    whole = reference.run_int(graph, q)
    alone = np.concatenate([reference.run_int(graph, q[i : i + 1]) for i in range(batch)])
    np.testing.assert_array_equal(whole, alone)
