"""What every fixed permutation is asked, by party: nothing may be asked twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.onehost import ferret
from secure_quant.onehost.permutation import FERRET, KEYS, LEAVES, PADS, TREES

EVERY = {
    "pads": PADS, "keys": KEYS, "ferret": FERRET,
    **{f"tree {name}": permutation for name, permutation in TREES.items()},
    **{f"leaves {name}": permutation for name, permutation in LEAVES.items()},
}  # fmt: skip


class Ledger:
    """Every input of a permutation in this process, by party."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.party = 0
        self.seen: dict[Any, list[Any]] = {(name, p): [] for name in EVERY for p in (0, 1)}
        for name, permutation in EVERY.items():
            plain = permutation.hash
            monkeypatch.setattr(permutation, "hash", self._recording(name, plain))
        # Asked of σ; 0 stands for the node of each tree that the chooser does not know.
        monkeypatch.setattr(ferret, "FERRET", self._recording("ferret", FERRET))

    def _recording(self, name: str, plain: Any) -> Any:
        def record(blocks: Any) -> Any:
            asked = blocks.reshape(-1, 2)
            self.seen[name, self.party].append(asked[asked.any(axis=1)])
            return plain(blocks)

        return record

    def follow(self, party: int, run: Any) -> Any:
        """``run``, noted under ``party``."""
        message = None
        while True:
            self.party = party
            try:
                exchange = next(run) if message is None else run.send(message)
            except StopIteration as end:
                return end.value
            message = yield exchange

    def check(self) -> dict[str, int]:
        """How often each permutation was asked by party 0."""
        made = {}
        for (name, party), blocks in self.seen.items():
            whole = np.concatenate([np.empty((0, 2), np.uint64), *blocks])
            assert len(np.unique(whole, axis=0)) == len(whole)
            made |= {name: len(whole)} if party == 0 else {}
        return made
