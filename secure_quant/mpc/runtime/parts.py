"""What arrives in chunks."""

from __future__ import annotations

from secure_quant.errors import MalformedMessage

__all__ = ["Parts"]


class Parts:
    """Something of a known size that arrives in chunks, in order."""

    def __init__(self, size: int) -> None:
        self.size, self._got = size, 0
        self.whole = memoryview(b"")

    def add(self, offset: int, data: bytes | memoryview) -> bool:
        """True once it is whole. Raises MalformedMessage."""
        end = offset + len(data)
        if offset != self._got or not data or end > self.size:
            got, expected = (offset, len(data)), f"from {self._got} of {self.size}"
            raise MalformedMessage("chunk", got=got, expected=expected)
        if len(data) == self.size:
            self.whole = memoryview(data)  # as it came: a megabyte need not be copied
        else:
            self.whole = self.whole or memoryview(bytearray(self.size))
            self.whole[offset:end] = data
        self._got = end
        return end == self.size
