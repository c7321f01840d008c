"""Graphs that answer places of the largest."""

from __future__ import annotations

from conformance.builder import Net
from conformance.random_nets import SALT
from secure_quant.ir import Graph


def largest_of_classes() -> Graph:
    """As a classifier whose client learns the class alone."""
    net = Net(91, (12,))
    net.linear(10)
    net.top_k()
    return net.done(salt=SALT)


def largest_of_many() -> Graph:
    """Several levels of a tournament at several places, ties, and a table that reads the index."""
    net = Net(92, (3, 6), zero_point=5)
    net.linear(23, largest=1, bias=False)
    net.top_k(per_channel=False)
    net.requantize(per_channel=False)
    net.linear(2)
    return net.done(salt=SALT)


def largest_of_ties() -> Graph:
    """All scores of a place are alike: the first of them."""
    net = Net(93, (2, 4))
    net.linear(33, largest=0, bias=False)
    net.top_k(per_channel=False)
    return net.done(salt=SALT)


def largest_of_maps() -> Graph:
    """Along the first of three axes, as a segmentation has them."""
    net = Net(94, (2, 3, 4), zero_point=-7)
    net.conv(5, (3, 3), padding=(1, 1))
    net.top_k(axis=0)
    return net.done(salt=SALT)


def three_largest() -> Graph:
    """In order, of an activation, with equal ones among them."""
    net = Net(95, (2, 7))
    net.linear(7)
    net.requantize(entries=9, zero_point=3)
    net.top_k(3)
    return net.done(salt=SALT)


ORDERS = (
    largest_of_classes, largest_of_many, largest_of_ties, largest_of_maps, three_largest,
)  # fmt: skip
