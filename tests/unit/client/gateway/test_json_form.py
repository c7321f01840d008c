"""Requests of the HTTP form, with and without tensors in binary behind the JSON."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from secure_quant.errors import InputError, MalformedMessage, SecureQuantError
from secure_quant_client.gateway.asked import Made
from secure_quant_client.gateway.json_form import read, written

ROW = {"name": "row", "datatype": "FP32", "shape": [1, 2]}


def request(document: Any, raw: bytes = b"") -> tuple[str | None, bytes]:
    text = json.dumps(document).encode()
    return (str(len(text)) if raw else None), text + raw


def test_json_and_binary_side_by_side() -> None:
    words = {"name": "words", "datatype": "INT64", "shape": [1, 1], "data": [7]}
    raw = {**ROW, "parameters": {"binary_data_size": 8}}
    document = {
        "id": "a", "inputs": [raw, words], "parameters": {"timeout": 2_000_000},
        "outputs": [{"name": "p", "parameters": {"binary_data": True}}, {"name": "q"}],
    }  # fmt: skip
    asked, binary = read("m", "v", *request(document, struct.pack("<2f", 1.5, -2)))
    assert (asked.model, asked.version, asked.id, asked.seconds) == ("m", "v", "a", 2.0)
    assert asked.outputs == ("p", "q")
    assert asked.inputs["row"].tolist() == [[1.5, -2.0]]
    assert asked.inputs["words"].tolist() == [[7]]
    assert [binary("p"), binary("q")] == [True, False]


def test_binary_for_all_outputs() -> None:
    document = {"inputs": [{**ROW, "data": [1, 2]}], "parameters": {"binary_data_output": True}}
    asked, binary = read("m", "", *request(document))
    assert asked.outputs == ()
    assert binary("whatever")
    array = np.array([[0.1, 2.0]], np.float32)
    text, raw = written(Made("m", "v", "", {"a": array, "b": array}), lambda name: name == "b")
    answer = json.loads(text)
    assert answer["outputs"][1] == {
        "name": "b", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8},
    }  # fmt: skip
    assert np.float32(answer["outputs"][0]["data"]).tolist() == array[0].tolist()
    assert raw == [struct.pack("<2f", *array[0])]
    assert "id" not in answer


@pytest.mark.parametrize(
    ("document", "raw", "what"),
    [
        ([], b"", "JSON object"),
        ({}, b"", "inputs"),
        ({"inputs": []}, b"", "inputs"),
        ({"inputs": ["row"]}, b"", "inputs"),
        ({"inputs": [{**ROW, "data": [1, 2]}] * 2}, b"", "'row' twice"),
        ({"inputs": [{"name": "row"}]}, b"", "datatype of input 'row'"),
        ({"inputs": [{**ROW, "shape": [1.0, 2], "data": [1, 2]}]}, b"", "shape of input 'row'"),
        ({"inputs": [ROW]}, b"", "data of input 'row'"),
        ({"inputs": [{**ROW, "data": [1, 2]}]}, b"more", "4 bytes more"),
        ({"inputs": [{**ROW, "parameters": {"binary_data_size": 9}}]}, bytes(8), "'row'"),
        ({"inputs": [{**ROW, "parameters": {"binary_data_size": -1}}]}, bytes(8), "'row'"),
        ({"inputs": [{**ROW, "parameters": {"binary_data_size": True}}]}, bytes(8), "'row'"),
        ({"inputs": [{**ROW, "data": [1, 2], "id": 1}], "id": 3}, b"", "id"),
        ({"inputs": [{**ROW, "data": [1, 2]}], "parameters": {"sequence_id": 3}}, b"", "sequence"),
        ({"inputs": [{**ROW, "data": [1, 2]}], "parameters": {"timeout": -1}}, b"", "timeout"),
        ({"inputs": [{**ROW, "data": [1, 2]}], "outputs": [{"name": "p", "parameters": {
            "classification": 2}}]}, b"", "classification"),
        ({"inputs": [{**ROW, "parameters": {"shared_memory_region": "r"}}]}, b"", "shared_memory"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(document: Any, raw: bytes, what: str) -> None:
    with pytest.raises((MalformedMessage, InputError), match=what):
        read("m", "", *request(document, raw))


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (None, b"{"), (None, b"\xff"), (None, b"[" * 10**5), (None, b'{"inputs": 1e999999}'),
        ("9" * 30, b"{}"), ("-1", b"{}"), ("3", b"{}"), ("x", b"{}"), ("٣", b"{}"),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_read(header: str | None, body: bytes) -> None:
    with pytest.raises(SecureQuantError):
        read("m", "", header, body)


def test_no_error_repeats_a_value() -> None:
    secret = 123456.789
    for data in ([secret], [secret, "x"], [secret, 1, 2]):
        document = {"inputs": [{**ROW, "data": data}]}
        with pytest.raises(SecureQuantError) as found:
            read("m", "", *request(document))
        assert "123456" not in str(found.value)
