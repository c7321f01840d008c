"""Requests and answers of the protocol's HTTP form, as bytes: JSON, and behind it, by Triton's
extension, tensors in binary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import MalformedMessage
from secure_quant_client.gateway.asked import Asked, Made, collected, refuse_unknown, seconds_in
from secure_quant_client.gateway.tensors import ANSWERED, from_json, from_raw, to_raw

__all__ = ["HEADER", "Binary", "Object", "read", "written"]

HEADER = "Inference-Header-Content-Length"
"""Header that says how many bytes are JSON, where others follow."""
Object = dict[str, Any]
Binary = Callable[[str], bool]
"""Whether an output is wanted in binary, by its name."""


def read(model: str, version: str, header: str | None, body: bytes) -> tuple[Asked, Binary]:
    """A request of the protocol. header: of the bytes of JSON, where binary data follows it.

    Raises MalformedMessage and InputError's leaves.
    """
    size = _header_size(header, body)
    document = _parsed(body[:size])
    rest = memoryview(body)[size:]
    parameters = _object(document, "parameters", "request", {})
    refuse_unknown(parameters)
    inputs: dict[str, NDArray[Any]] = {}
    given = _list(document, "inputs")
    names = collected([_text(each, "name", "input") for each in given], "inputs")
    for name, each in zip(names, given, strict=True):
        inputs[name], rest = _input(name, each, rest)
    if len(rest):
        got = f"{len(rest)} bytes more than the inputs' binary_data_size"
        raise MalformedMessage("request", got=got)
    outputs = _list(document, "outputs", needed=False)
    wanted = collected([_text(each, "name", "output") for each in outputs], "outputs")
    binary = {}
    for name, each in zip(wanted, outputs, strict=True):
        about = _object(each, "parameters", f"output {name!r}", {})
        refuse_unknown(about)
        binary[name] = _flag(about, "binary_data", parameters.get("binary_data_output", False))
    default = _flag(parameters, "binary_data_output", False)
    identity = document.get("id", "")
    if not isinstance(identity, str):
        raise MalformedMessage("id", got=type(identity).__name__, expected="text")
    asked = Asked(model, version, identity, inputs, wanted, seconds_in(parameters))
    return asked, lambda name: binary.get(name, default)


def written(made: Made, binary: Binary) -> tuple[bytes, list[bytes]]:
    """JSON, and what follows it in binary."""
    outputs, raw = [], []
    for name, array in made.outputs.items():
        about: Object = {"name": name, "datatype": ANSWERED, "shape": list(array.shape)}
        if binary(name):
            raw.append(to_raw(array))
            about["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            about["data"] = array.astype(np.float64).reshape(-1).tolist()
        outputs.append(about)
    answer: Object = {"model_name": made.model, "model_version": made.version}
    if made.id:
        answer["id"] = made.id
    return json.dumps(answer | {"outputs": outputs}, allow_nan=False).encode(), raw


def _input(name: str, about: Object, rest: memoryview) -> tuple[NDArray[Any], memoryview]:
    what = f"input {name!r}"
    datatype, shape = _text(about, "datatype", what), about.get("shape")
    whole = isinstance(shape, list) and all(type(each) is int for each in shape)
    if not isinstance(shape, list) or not whole:
        raise MalformedMessage(f"shape of {what}", expected="a list of whole numbers")
    parameters = _object(about, "parameters", what, {})
    refuse_unknown(parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        return from_json(name, datatype, shape, about.get("data")), rest
    if type(size) is not int or not 0 <= size <= len(rest) or "data" in about:
        got = "data as well" if "data" in about else "another size"
        expected = "the bytes of this input behind the JSON"
        raise MalformedMessage(f"binary_data_size of {what}", got=got, expected=expected)
    return from_raw(name, datatype, shape, bytes(rest[:size])), rest[size:]


def _header_size(header: str | None, body: bytes) -> int:
    if header is None:
        return len(body)
    if not (header.isascii() and header.isdecimal() and len(header) < 19):
        raise MalformedMessage(HEADER, got=ascii(header[:40]), expected="a count of bytes")
    if int(header) > len(body):
        raise MalformedMessage(HEADER, got=header, expected=f"<= {len(body)}")
    return int(header)


def _parsed(text: bytes) -> Object:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("request", got=f"{len(text)} bytes", expected="JSON") from error
    if not isinstance(document, dict):
        raise MalformedMessage("request", got=type(document).__name__, expected="a JSON object")
    return document


def _list(document: Object, key: str, *, needed: bool = True) -> list[Object]:
    found = document.get(key, None if needed else [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise MalformedMessage(key, got=type(found).__name__, expected="a list of objects")
    if needed and not found:
        raise MalformedMessage(key, got="none", expected="an input at least")
    return found


def _text(about: Object, key: str, what: str) -> str:
    found = about.get(key)
    if not isinstance(found, str):
        raise MalformedMessage(f"{key} of {what}", got=type(found).__name__, expected="text")
    return found


def _object(about: Object, key: str, what: str, default: Object) -> Object:
    found = about.get(key, default)
    if not isinstance(found, dict):
        raise MalformedMessage(f"{key} of {what}", got=type(found).__name__, expected="an object")
    return found


def _flag(parameters: Mapping[str, Any], name: str, default: Any) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        what = f"parameter {name!r}"
        raise MalformedMessage(what, got=type(found).__name__, expected="true or false")
    return found
