"""Role bundles of leveled models: the server's holds the weights, the client's does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from secure_quant.errors import MalformedModel, UnsupportedVersion
from secure_quant.he.leveled.model import LeveledModel, PublicLeveled
from secure_quant.he.leveled.plan import TOLERANCE, LeveledPlan, plan
from secure_quant.ir.container import read_tensors, write_tensors

if TYPE_CHECKING:
    from secure_quant.he.leveled.evaluate import LeveledEvaluator

__all__ = ["is_server", "load_client", "load_server", "split"]

VERSION = "1"
_SERVER, _CLIENT = "secure-quant-leveled-server", "secure-quant-leveled-client"


def split(model: LeveledModel, *, tolerance: float = TOLERANCE) -> dict[str, bytes]:
    """ "server": model and plan. "client": what is public. Raises OpNotSupported."""
    public, made = model.public(), plan(model, tolerance=tolerance)
    text = made.to_json()
    return {
        "server": _write(_SERVER, public, {"model": model.encode(), "plan": text}),
        "client": _write(_CLIENT, public, {"public": public.to_json(), "plan": text}),
    }


def is_server(data: bytes) -> bool:
    """Whether the bytes claim to be a leveled model's server bundle. Raises MalformedModel."""
    return read_tensors(data)[1].get("format", "").startswith(f"{_SERVER}/")


def load_server(data: bytes) -> LeveledEvaluator:
    """Raises MalformedModel and its kin, InvalidGraph, InsecureRefused, ConfigError."""
    from secure_quant.he.leveled.evaluate import LeveledEvaluator

    parts, claimed = _read(_SERVER, ("model", "plan"), data)
    model = LeveledModel.decode(parts["model"], expected_hash=claimed)
    return LeveledEvaluator(model, LeveledPlan.from_json(parts["plan"], model.public()))


def load_client(data: bytes) -> LeveledPlan:
    """The plan, with the public model in it. Raises as ``load_server``."""
    parts, claimed = _read(_CLIENT, ("public", "plan"), data)
    public = PublicLeveled.from_json(parts["public"], expected_hash=claimed)
    return LeveledPlan.from_json(parts["plan"], public)


def _write(role: str, public: PublicLeveled, parts: dict[str, bytes]) -> bytes:
    metadata = {"format": f"{role}/{VERSION}", "hash": public.hash}
    return write_tensors({k: np.frombuffer(v, np.uint8) for k, v in parts.items()}, metadata)


def _read(role: str, names: tuple[str, ...], data: bytes) -> tuple[dict[str, bytes], str]:
    tensors, metadata = read_tensors(data)
    expected, got = f"{role}/{VERSION}", metadata.get("format", "nothing")
    if got != expected:
        kind = UnsupportedVersion if got.startswith(f"{role}/") else MalformedModel
        raise kind("bundle", got=ascii(got[:80]), expected=expected)
    whole = set(tensors) == set(names) and set(metadata) == {"format", "hash"}
    if not whole or any(t.dtype != np.uint8 or t.ndim != 1 for t in tensors.values()):
        raise MalformedModel("bundle", got=sorted(tensors)[:8], expected=sorted(names))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}, metadata["hash"]
