"""tools/hops.py: an input's way in the client stays as short as ARCHITECTURE.md says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hops", ROOT / "tools" / "hops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_moves_are_those_that_the_architecture_states() -> None:
    text = " ".join((ROOT / "ARCHITECTURE.md").read_text().split())
    stated = re.search(
        r"on that way: (\d+) under secret sharing, (\d+) for .*?, (\d+) in the leveled", text
    )
    assert [found.total() for _, found in tool().ways()] == [int(n) for n in stated.groups()]


def test_moves_are_calls_between_rooms() -> None:
    from secure_quant_client.driver import Deadline

    module = tool()
    assert not module.moves(lambda: Deadline(5).remaining())  # nobody in the client calls it
    found = dict(module.ways())["secret sharing"]
    assert found["mpc.model", "mpc.sharing"] == 2  # shared once, joined once
    assert all(before != room for before, room in found)
