"""What a client holds to before it trusts what servers say of a model."""

from __future__ import annotations

from secure_quant.errors import MessageTooLarge

__all__ = ["UNPINNED_BYTES", "bound_unpinned"]

UNPINNED_BYTES = 256 * 2**20
"""Most memory that one sample of a model without ``expected_hash`` may ask of its client."""


def bound_unpinned(what: str, size: int, expected_hash: str | None) -> None:
    """A model whose hash was not given is whatever the server likes: its client holds no more
    than UNPINNED_BYTES for one sample. Raises MessageTooLarge."""
    if expected_hash is None and size > UNPINNED_BYTES:
        raise MessageTooLarge(
            what, got=f"{size} bytes for one sample", expected=f"<= {UNPINNED_BYTES}",
            hint="give expected_hash, and larger models of that hash are served",
        )  # fmt: skip
