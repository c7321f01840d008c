"""What every fixed permutation is asked, by party: nothing may be asked twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secure_quant.onehost.permutation import KEYS, LEAVES, PADS, TREES

EVERY = {
    "pads": PADS, "keys": KEYS,
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

    def _recording(self, name: str, plain: Any) -> Any:
        def record(blocks: Any) -> Any:
            self.seen[name, self.party].append(blocks.reshape(-1, 2).copy())
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
