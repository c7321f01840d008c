"""Processes on one machine that stand for hosts."""

import os

import pytest

from secure_quant_cli.processes import bind_to_half, bound_to_half, own_cores


@pytest.mark.skipif(len(own_cores()) < 2, reason="one core has no halves")
def test_a_thread_has_its_half_for_a_while() -> None:
    before = sorted(os.sched_getaffinity(0))
    halves = []
    for half in (0, 1):
        with bound_to_half(half):
            halves.append(os.sched_getaffinity(0))
            bind_to_half(0, 1 - half, before)  # of what all share, not of its own half
            halves.append(os.sched_getaffinity(0))
    assert sorted(os.sched_getaffinity(0)) == before
    assert sorted(halves[0] | halves[1]) == before
    assert not halves[0] & halves[1]
    assert halves == [halves[0], halves[1], halves[1], halves[0]]


def test_no_half_is_all() -> None:
    before = own_cores()
    with bound_to_half(None):
        assert own_cores() == before
