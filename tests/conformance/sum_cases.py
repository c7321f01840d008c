"""Graphs whose products read sums and products that no table has rounded."""

from __future__ import annotations

from conformance.builder import Net
from conformance.random_nets import SALT, any_table
from secure_quant.ir import Graph


def normalized_rows() -> Graph:
    """As a LayerNorm of a residual stream: D · Σ x² - (Σ x)² of a sum by channels, with bounds by
    channel, and a product of the differences with a sum of tables."""
    net = Net(96, (3, 5), zero_point=-7)
    x = net.head
    net.linear(5)
    branch = net.requantize(zero_point=4)
    stream = net.add(x, branch, (64, 1, 7, -3, 300, 1, 9, 2, 64, 11))
    row = net.reshape(3, 1, 5)
    squares = net.matmul(row, row, transpose_b=True)
    net.at(stream).reduce_sum()
    total = net.reshape(3, 1, 1)
    net.add(squares, net.mul(total, total), (5, -1))
    spread = net.head
    first = net.requantize(any_table(1, 500, 2000), zero_point=1, per_channel=False, sharper=4)
    second = net.at(spread).requantize(any_table(2, 300, 900), per_channel=False)
    net.at(first)
    both = net.add(first, second)
    net.at(stream).reduce_sum()
    mean = net.requantize(any_table(3, 700, 3000), zero_point=9)
    net.add(stream, mean, (1, -2))
    centred = net.head
    factor = net.at(both).reshape(3, 1)
    net.mul(centred, factor)
    net.requantize()
    net.linear(4)
    return net.done(salt=SALT)


def product_of_products() -> Graph:
    """As a softmax that is divided after its product with values: two products in a row, the second
    of which needs the first one's mask."""
    net = Net(97, (4, 6))
    x = net.head
    net.requantize(tuple(range(-128, 127)), zero_point=-128)
    weights = net.head
    net.at(x).linear(6)
    net.requantize(zero_point=3)
    turned = net.transpose(1, 0)
    made = net.matmul(weights, turned)
    net.at(weights).reduce_sum()
    factor = net.requantize(any_table(4, 900, 2000), zero_point=-5, per_channel=False)
    net.mul(made, factor)
    first = net.requantize()
    total = net.at(net.at(made).transpose(1, 0)).reduce_sum()
    second = net.at(total).requantize()
    net.at(first)
    net.matmul(net.transpose(1, 0), first)
    net.add(net.head, second, (1, 7))
    net.requantize()
    net.linear(3)
    return net.done(salt=SALT)


def products_at_the_output() -> Graph:
    """The answer is a sum of products, whose masks leave as shares."""
    net = Net(98, (3, 4), zero_point=2)
    x = net.head
    net.linear(4)
    y = net.requantize(zero_point=-3)
    first, second = net.mul(x, y), net.matmul(x, y, transpose_b=True)
    net.at(second).reduce_sum()
    net.add(first, net.head, (3, -2))
    return net.done(salt=SALT)


SUMS = (normalized_rows, product_of_products, products_at_the_output)
