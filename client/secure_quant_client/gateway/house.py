"""The models of a gateway, by their names for callers."""

from __future__ import annotations

from collections.abc import Mapping

from secure_quant.engines import resolved
from secure_quant.errors import ModelNotFound, SecureQuantError
from secure_quant_client.gateway.served import Served
from secure_quant_client.gateway.status import FromServers

__all__ = ["EXTENSIONS", "NAME", "VERSION", "House"]

NAME = "secure-quant"
VERSION: str = resolved("secure_quant:__version__")  # the owner's door is no import of a client's
EXTENSIONS = ["binary_tensor_data"]


class House:
    """What both forms of the protocol serve."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models = dict(models)

    def model(self, name: str) -> Served:
        """Raises ModelNotFound."""
        found = self._models.get(name)
        if found is None:
            expected = ", ".join(ascii(each) for each in list(self._models)[:32])
            raise ModelNotFound("model", got=ascii(name[:80]), expected=expected)
        return found

    async def reason(self, name: str | None = None, version: str = "") -> Exception | None:
        """Why this model, or any, is not ready; None if it is. Raises ModelNotFound."""
        chosen = list(self._models.values()) if name is None else [self.model(name)]
        for each in chosen:
            try:
                await each.check_ready()
                await each.version(version)
            except (SecureQuantError, FromServers) as error:
                return error
        return None

    async def close(self) -> None:
        """Give up all connections."""
        for each in self._models.values():
            await each.close()
