"""AES-128 under public constants, as fixed permutations: one for each purpose, never shared.

Guo, Katz, Wang and Yu, "Efficient and Secure Multiparty Computation from Fixed-Key Block Ciphers"
(IEEE S&P 2020): x -> π(x) ⊕ x is correlation robust in the ideal-permutation model, and
x -> π(σ(x)) ⊕ σ(x) with σ(l, r) = (l ⊕ r, l) circular correlation robust.
"""

from __future__ import annotations

import hashlib
from threading import local

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

__all__ = [
    "CHILDREN", "FERRET", "KEYS", "LEAVES", "PADS", "TREES", "Permutation", "Words",
]  # fmt: skip

Words = NDArray[np.uint64]


class Permutation:
    """π of one purpose, on blocks of 128 bits: uint64[..., 2], the lower half first."""

    def __init__(self, purpose: str) -> None:
        key = hashlib.sha256(b"secure-quant one host: " + purpose.encode()).digest()[:16]
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - a permutation
        # Two threads may not share an encryptor, and a new one takes longer than a small message.
        self._of_thread = local()

    def _encryptor(self) -> CipherContext:
        try:
            made: CipherContext = self._of_thread.encryptor
        except AttributeError:
            made = self._of_thread.encryptor = self._cipher.encryptor()
        return made

    def __call__(self, blocks: Words) -> Words:
        """π(x), uint64[..., 2]."""
        plain = np.ascontiguousarray(blocks, "<u8").reshape(-1)
        made = np.empty(plain.size + 2, "<u8")  # the encryptor asks for room for a block more
        self._encryptor().update_into(plain.view(np.uint8).data, made.view(np.uint8).data)
        return made[: plain.size].astype(np.uint64, copy=False).reshape(blocks.shape)

    def hash(self, blocks: Words) -> Words:
        """π(x) ⊕ x."""
        made = self(blocks)
        made ^= blocks
        return made

    def circular(self, blocks: Words) -> Words:
        """π(σ(x)) ⊕ σ(x)."""
        turned = np.empty(blocks.shape, np.uint64)
        turned[..., 0] = blocks[..., 0] ^ blocks[..., 1]
        turned[..., 1] = blocks[..., 0]
        return self.hash(turned)


CHILDREN = Permutation("left child"), Permutation("right child")
"""Of a seed in the trees of the extension."""
FERRET = Permutation("ferret")
"""Of a node in the trees of Ferret."""
KEYS = Permutation("key")
"""Of a correlated block."""
PADS = Permutation("pad")
"""Block j of the pad under a key."""
TREES = {name: Permutation(f"tree: {name}") for name in ("digit", "main", "saturation")}
"""Inner nodes of the half-trees, by the one-hot's purpose: two may start at the same bit."""
LEAVES = {name: Permutation(f"leaves: {name}") for name in ("digit", "main", "saturation")}
"""Their leaves."""
