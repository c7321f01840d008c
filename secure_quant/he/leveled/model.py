"""What a leveled model is: int8 weights times real scales, real biases, real squares between.

Its meaning is a function over the reals, not over the integers: ``reference`` evaluates it in
float64, and an encrypted inference differs from it by at most the bound of its plan.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secure_quant.errors import (
    DtypeMismatch,
    HashMismatch,
    InvalidGraph,
    MalformedModel,
    ShapeMismatch,
    UnsupportedVersion,
    ValueOutOfRange,
)
from secure_quant.ir.container import read_tensors, unique_keys, write_tensors

__all__ = ["FORMAT", "LeveledLayer", "LeveledModel", "PublicLeveled", "check_input"]

FORMAT = "secure-quant-leveled/1"
SALT_BYTES = 32
MAX_WIDTH = 4096
MAX_LAYERS = 8
Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class LeveledLayer:
    """y = (scale · weight) x + bias.

    weight  int8[out, in].
    scale   float64[out], positive: the worth of one unit of each row.
    bias    float64[out].
    """

    weight: NDArray[np.int8]
    scale: Float
    bias: Float

    def __post_init__(self) -> None:
        out = len(self.weight)
        if self.weight.ndim != 2 or self.weight.dtype != np.int8:
            got = f"{self.weight.dtype}{list(self.weight.shape)}"
            raise InvalidGraph("weight", got=got, expected="int8[out, in]")
        if not all(1 <= width <= MAX_WIDTH for width in self.weight.shape):
            shape = list(self.weight.shape)
            raise InvalidGraph("weight", got=shape, expected=f"widths of 1 to {MAX_WIDTH}")
        for name, array in (("scale", self.scale), ("bias", self.bias)):
            if array.dtype != np.float64 or array.shape != (out,) or not np.isfinite(array).all():
                raise InvalidGraph(name, got=f"{array.dtype}{list(array.shape)}",
                                   expected=f"finite float64[{out}]")  # fmt: skip
        if not (self.scale > 0).all():
            raise InvalidGraph("scale", got="a value <= 0", expected="> 0")
        self.weight.setflags(write=False)
        self.scale.setflags(write=False)
        self.bias.setflags(write=False)

    @property
    def matrix(self) -> Float:
        """float64[out, in]: the weights with their scales."""
        return self.weight * self.scale[:, None]


@dataclass(frozen=True)
class PublicLeveled:
    """All that a client may know of a model: widths, the range of its inputs, the commitment to
    the rest. ``hash`` covers exactly that, and through the commitment the weights."""

    widths: tuple[int, ...]
    input_bound: float
    commitment: bytes

    def __post_init__(self) -> None:
        widths = self.widths
        if not 2 <= len(widths) <= MAX_LAYERS + 1 or not all(1 <= w <= MAX_WIDTH for w in widths):
            raise InvalidGraph("widths", got=widths[: MAX_LAYERS + 2],
                               expected=f"2 to {MAX_LAYERS + 1} of 1 to {MAX_WIDTH}")  # fmt: skip
        if not (isfinite(self.input_bound) and self.input_bound > 0):
            raise InvalidGraph("input bound", got=self.input_bound, expected="finite, > 0")
        if len(self.commitment) != hashlib.sha256().digest_size:
            raise MalformedModel("commitment", got=len(self.commitment), expected="32 bytes")

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """Canonical."""
        document = {
            "format": FORMAT,
            "widths": list(self.widths),
            "input_bound": float(self.input_bound).hex(),
            "commitment": self.commitment.hex(),
        }
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, *, expected_hash: str | None = None) -> PublicLeveled:
        """Inverse of ``to_json``; another encoding of the same content is refused.

        Raises MalformedModel, HashMismatch, UnsupportedVersion, InvalidGraph.
        """
        if len(data) > 4096:
            raise MalformedModel("public model", got=f"{len(data)} bytes", expected="<= 4096")
        try:
            document = json.loads(data.decode(), object_pairs_hook=unique_keys)
            version, widths = document["format"], document["widths"]
            bound = float.fromhex(document["input_bound"])
            commitment = bytes.fromhex(document["commitment"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise MalformedModel("public model", got="not its JSON") from error
        if version != FORMAT:
            raise UnsupportedVersion("leveled model", got=ascii(version)[:80], expected=FORMAT)
        if not isinstance(widths, list) or not all(type(width) is int for width in widths):
            raise MalformedModel("widths", expected="a list of integers")
        made = cls(tuple(widths), bound, commitment)
        if made.to_json() != data:
            raise MalformedModel("public model", got="another encoding", expected="the canonical")
        if expected_hash is not None and made.hash != expected_hash:
            raise HashMismatch("leveled model", got=made.hash, expected=ascii(expected_hash[:64]))
        return made


@dataclass(frozen=True, eq=False)
class LeveledModel:
    """Layers with a square between each two.

    input_bound  inputs are clipped to [-input_bound, input_bound], which is part of the meaning:
                 the bounds of all values, and with them of the error, are proven from it.
    salt         32 random bytes that keep the commitment from confirming a guess of the weights.
    """

    layers: tuple[LeveledLayer, ...]
    input_bound: float
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(SALT_BYTES), repr=False)

    def __post_init__(self) -> None:
        if not self.layers or len(self.salt) != SALT_BYTES:
            raise InvalidGraph("leveled model", got=f"{len(self.layers)} layers", expected=">= 1")
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if len(before.weight) != after.weight.shape[1]:
                raise InvalidGraph("widths", got=after.weight.shape[1], expected=len(before.weight))
        self.public()  # checks the rest

    @classmethod
    def of(
        cls, layers: Iterable[tuple[NDArray[np.int8], Float, Float]], input_bound: float
    ) -> LeveledModel:
        """(weight, scale, bias) of each layer, as ``quantize_leveled`` makes them."""
        return cls(tuple(LeveledLayer(*layer) for layer in layers), input_bound)

    @property
    def hash(self) -> str:
        """Of the content: see PublicLeveled."""
        return self.public().hash

    def public(self) -> PublicLeveled:
        """The half that clients are told."""
        widths = (self.layers[0].weight.shape[1], *(len(layer.weight) for layer in self.layers))
        commitment = hashlib.sha256(self.salt)
        for name, array in self._tensors().items():
            commitment.update(f"{name}{array.shape}".encode() + array.tobytes())
        return PublicLeveled(widths, float(self.input_bound), commitment.digest())

    def reference(self, x: ArrayLike) -> Float:
        """float[batch, in] -> float64[batch, out]: the meaning, in plain float64.

        Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange.
        """
        value = check_input(self.public(), x)
        for i, layer in enumerate(self.layers):
            value = (value if i == 0 else value**2) @ layer.matrix.T + layer.bias
        return value

    def encode(self) -> bytes:
        """The model file: safetensors; float64 as their bits in U64."""
        tensors = self._tensors() | {"salt": np.frombuffer(self.salt, np.uint8)}
        public = self.public()
        return write_tensors(
            tensors, {"format": FORMAT, "public": public.to_json().decode(), "hash": public.hash}
        )

    @classmethod
    def decode(cls, data: bytes | memoryview, *, expected_hash: str | None = None) -> LeveledModel:
        """Inverse of ``encode``. Raises MalformedModel, HashMismatch, UnsupportedVersion,
        InvalidGraph."""
        tensors, metadata = read_tensors(data)
        if set(metadata) != {"format", "public", "hash"}:
            raise MalformedModel("leveled model", got=sorted(metadata)[:4], expected="its metadata")
        public = PublicLeveled.from_json(metadata["public"].encode(), expected_hash=expected_hash)
        names = {f"{i}.{part}" for i in range(len(public.widths) - 1) for part in _PARTS}
        if set(tensors) != names | {"salt"}:
            raise MalformedModel("tensors", got=sorted(tensors)[:8], expected=len(names) + 1)
        for name, array in tensors.items():
            dtype = _PARTS.get(name.rpartition(".")[2], np.dtype(np.uint8))
            if array.dtype != dtype:
                raise MalformedModel(f"tensor {name}", got=array.dtype, expected=dtype)
        layers = tuple(
            LeveledLayer(
                tensors[f"{i}.weight"].copy(),
                tensors[f"{i}.scale"].view(np.float64).copy(),
                tensors[f"{i}.bias"].view(np.float64).copy(),
            )
            for i in range(len(public.widths) - 1)
        )
        made = cls(layers, public.input_bound, tensors["salt"].tobytes())
        for claimed in (metadata["hash"], public.hash):
            if claimed != made.hash:
                raise HashMismatch("leveled model", got=made.hash, expected=ascii(claimed[:64]))
        return made

    def _tensors(self) -> dict[str, NDArray[Any]]:
        made: dict[str, NDArray[Any]] = {}
        for i, layer in enumerate(self.layers):
            made[f"{i}.weight"] = layer.weight
            made[f"{i}.scale"] = layer.scale.view(np.uint64)
            made[f"{i}.bias"] = layer.bias.view(np.uint64)
        return made


def check_input(public: PublicLeveled, x: ArrayLike) -> Float:
    """``x`` as float64[batch, in], clipped to the input bound; other axes after the first are
    flattened. Raises ShapeMismatch, DtypeMismatch, ValueOutOfRange for NaN or infinity."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise DtypeMismatch("input", got=array.dtype, expected="real numbers")
    width = public.widths[0]
    if array.ndim < 2 or int(np.prod(array.shape[1:])) != width:
        raise ShapeMismatch("input", got=list(array.shape), expected=f"[batch, {width}]")
    value = array.reshape(len(array), width).astype(np.float64)
    if not np.isfinite(value).all():
        raise ValueOutOfRange("input", got="NaN or infinity", expected="finite numbers")
    made: Float = np.clip(value, -public.input_bound, public.input_bound)
    return made


_PARTS: dict[str, np.dtype[Any]] = {
    "weight": np.dtype(np.int8),
    "scale": np.dtype(np.uint64),
    "bias": np.dtype(np.uint64),
}
