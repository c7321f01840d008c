"""Graphs with named inputs and outputs."""

from __future__ import annotations

from conformance.builder import Net
from conformance.random_nets import SALT
from secure_quant.ir import Graph


def ports() -> Graph:
    """Four inputs with grids of their own, one of them rows of a table; outputs of every kind, one
    read on, two of one sum."""
    net = Net(66, (2 * 36 + 10 + 3 + 8,), scale=1.0)
    picture = net.port("picture", 2, 6, 6, zero_point=-128)
    row, mask = net.port("row", 10, zero_point=9), net.port("mask", 3, dtype="bool")
    words = net.lookup("words", 2, 4, rows=20, zero_point=-4)
    net.at(picture).conv(4, (3, 3), padding=(1, 1))
    seen = net.requantize(zero_point=-7)
    hidden = net.out("hidden")
    net.sum_pool((2, 2), (2, 2))
    pooled = net.out("pooled", per_channel=True, axis=0)
    flat = net.at(seen).flatten()
    net.linear(5)
    logits, again = net.out("logits", per_channel=True), net.out("again")
    net.at(row).linear(3)
    gate = net.requantize(zero_point=3)
    net.add(gate, mask, (1, -40))
    masked = net.out("masked")
    net.requantize()
    net.mul(net.head, mask)
    gated = net.out("gated")
    net.at(flat).slice(0, 3, 140, 9)
    some = net.out("some")
    net.at(words).linear(3)
    read = net.out("read")
    net.at(mask)
    same = net.out("mask")
    return net.joined(logits, masked, same, hidden, pooled, gated, again, some, read, salt=SALT)


def one_port_each() -> Graph:
    """One named array in, one out."""
    net = Net(67, (12,), scale=1.0)
    net.port("rows", 3, 4, zero_point=-5)
    net.linear(4)
    return net.joined(net.out("scores", per_channel=True), salt=SALT)


def secret_tables() -> Graph:
    """Rows of secret tables: of one digit, of two and of three, a table of a single row, two tables
    of one port, and rows that a linear layer, a sum, a maximum and an output read."""
    net = Net(68, (3 + 3 * 2 + 2 * 3 + 1 + 4,), scale=1.0)
    few, words = net.ids("few", 3, rows=5), net.ids("words", 3, rows=300)
    many, one = net.ids("many", 2, rows=66_000), net.ids("one", 1, rows=1)
    row = net.port("row", 4, zero_point=9)
    first = net.at(words).embedding(9, zero_point=-3)
    second = net.at(words).embedding(9)
    net.add(first, second, (2, -1))
    net.requantize()
    summed = net.out("summed")
    net.at(few).embedding(8, zero_point=7)
    net.linear(4)
    scores = net.out("scores")
    net.at(many).embedding(1)
    net.transpose(1, 0)
    net.reduce_max()
    largest = net.out("largest")
    net.at(one).embedding(4)
    net.reshape(4)
    net.add(net.head, row)
    alone = net.out("alone")
    return net.joined(summed, scores, largest, alone, salt=SALT)
