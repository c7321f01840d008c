"""Graphs whose sums and products read sums and products that no table has rounded."""

from __future__ import annotations

from conformance.builder import Net
from conformance.random_nets import SALT, any_table
from secure_quant.ir import Graph


def sums_of_accumulators() -> Graph:
    """Add reads sums over rows as they stand."""
    net = Net(63, (3, 6), zero_point=-5)
    x, total = net.head, net.reduce_sum()
    net.add(x, total, (6, -1))
    net.requantize(zero_point=3)
    rows = net.head
    net.add(rows, net.at(rows).reduce_sum(), (2, 5))
    return net.done(salt=SALT)


def sums_by_channel() -> Graph:
    """Factors of their own for each channel, on accumulators that no table rounded: what a
    LayerNorm of a residual stream needs."""
    net = Net(64, (3, 5), zero_point=-7)
    x = net.head
    net.linear(5)
    branch = net.requantize(zero_point=4)
    factors = (64, 1, 7, -3, 20, 1, 9, 2, 64, 11)
    stream = net.add(x, branch, factors)
    centred = net.add(stream, net.reduce_sum(), (5, -1))
    net.add(centred, branch, (1, 0, 2, 0, -1, 0, 3, 0, 4, 1))
    wide = net.requantize(any_table(10, 900, 2000), zero_point=1, sharper=2)
    kept = net.at(stream).requantize()
    net.mul(wide, kept)
    one = net.requantize()
    total = net.at(one).reduce_sum()
    net.add(one, total, (1, 2, 3, 4, 5, -1, 0, 1, 2, -2))  # the second is one number a row
    return net.done(salt=SALT, per_channel=True)


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


def rounded_and_not_clipped() -> Graph:
    """As a LayerNorm of a residual stream whose branch is rounded to what its proven range takes:
    a sum beyond int16, squares of it beyond 2**53, and a product that is rounded the same way."""
    net = Net(100, (3, 5), zero_point=-7)
    x = net.head
    net.linear(5)
    branch = net.round_off(9)
    stream = net.add(x, branch, (900, 17, 700, 99, 4095, 1900, 1, 2000, 1400, 3110))
    row = net.reshape(3, 1, 5)
    squares = net.matmul(row, row, transpose_b=True)
    net.at(stream).reduce_sum()
    total = net.reshape(3, 1, 1)
    net.add(squares, net.mul(total, total), (5, -1))
    factor = net.requantize(
        any_table(3, 900, 2000), zero_point=-5, per_channel=False, multipliers=(3, 9)
    )
    factor = net.reshape(3, 1)
    net.mul(net.at(stream).round_off(6, per_channel=False), factor)
    net.round_off(18, per_channel=False)
    net.at(net.add(net.head, branch, (1, 3))).requantize()
    net.linear(4)
    return net.done(salt=SALT)


def rounded_at_the_output() -> Graph:
    net = Net(101, (3, 4), zero_point=2)
    net.linear(4)
    net.round_off(5)
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


def maximum_of_few_levels() -> Graph:
    """Rows of more candidates than a tournament likes, of 16 levels and of 3, which count."""
    net = Net(99, (3, 37), zero_point=4)
    x = net.head
    net.requantize(tuple(range(-5, 11)), zero_point=-5)
    first = net.reduce_max()
    net.at(x).linear(9)
    net.requantize((-1, 0, 1))
    second = net.reduce_max()
    net.add(first, second, (3, -2))
    net.requantize()
    net.linear(2)
    return net.done(salt=SALT)


def residual_block() -> Graph:
    """Sums of layers' accumulators as they stand: with an activation, by factors of each channel
    of a picture, and with another layer's; of three, and of one that a table reads as well."""
    net = Net(102, (3, 6, 5), zero_point=-9)
    net.conv(4, (3, 3), padding=(1, 1))
    x = net.requantize(zero_point=-128)
    net.conv(4, (3, 3), padding=(1, 1))
    net.requantize(zero_point=2)
    second = net.conv(4, (3, 3), padding=(1, 1), bias=False)
    net.add(second, x, (1, 4, 2, 3, 700, -300, 40, 901), axis=0)
    block = net.requantize(zero_point=-128, per_channel=False)
    main = net.conv(2, (3, 3), stride=(2, 2), padding=(1, 1))
    side = net.at(block).conv(2, (1, 1), stride=(2, 2))
    net.add(main, side, (5, 1, -3, 7), axis=-3)
    net.requantize(zero_point=1)
    narrow = net.head
    twice = net.add(main, net.at(block).conv(2, (1, 1), stride=(2, 2)), (1, -1))
    third = net.at(main).requantize(zero_point=4)
    net.add(twice, third, (1, 2, 900, 77), axis=0)
    wide = net.requantize(any_table(5, 900, 2000))
    net.add(narrow, wide, (3, 2))
    net.requantize()
    net.flatten()
    net.linear(3)
    return net.done(salt=SALT)


def residual_rows() -> Graph:
    """The same of linear layers: with a product and a sum of values, and broadcast."""
    net = Net(103, (3, 6), zero_point=4)
    x = net.head
    branch = net.linear(6)
    net.add(branch, x, (1, 2, 3, 1, 2, 3, 500, -40, 0, 77, 200, 1))
    y = net.requantize(zero_point=-3)
    branch, product = net.linear(6), net.mul(x, y)
    stream = net.add(branch, product, (2, -9))
    total = net.at(y).reduce_sum()
    net.add(stream, total, (1, 1, 1, 1, 1, 1, 6, 5, 4, 3, 2, 1))
    net.requantize(any_table(6, 900, 2000), zero_point=7)
    net.linear(4)
    return net.done(salt=SALT, per_channel=True)


SUMS = (
    sums_of_accumulators,
    sums_by_channel,
    normalized_rows,
    rounded_and_not_clipped,
    rounded_at_the_output,
    product_of_products,
    products_at_the_output,
    maximum_of_few_levels,
    residual_block,
    residual_rows,
)
