"""What objects say of themselves: what a user wants to read, and nothing that is secret.

A debugger, a crash reporter or a log line of somebody else shows an object by its repr, so weights,
shares, keys, ciphertexts and what users send stay out of it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conformance import cases
from secure_quant.ir import Graph
from secure_quant_client import HeClient, InsecurePlaintext, MpcClient
from secure_quant_client.program import Call

ROOT = Path(__file__).parents[2]
ROOMS = ("ir", "he", "mpc", "onehost", "transport", "wire")
FOLDERS = (*(f"secure_quant/{room}" for room in ROOMS), "server", "client")

PUBLIC = {
    "PublicLeveled.commitment",  # a salted hash
    "PublicParts.graph", "PublicParts.tables", "PublicParts.multipliers",
    "Places.inner_at", "Places.column_at",  # of a kernel's window
    "Credentials.ca", "Credentials.cert",
    "ReceivedModel.plan",
}  # fmt: skip
"""Bytes and arrays that anybody may see."""


def trees() -> Iterator[ast.Module]:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            if "gen" not in path.parts:
                yield ast.parse(path.read_text())


def shown(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(class.field, annotation) of all that dataclasses show."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        (made,) = [
            ast.unparse(d) for d in node.decorator_list if "dataclass" in ast.unparse(d)
        ] or [""]
        if not made or "repr=False" in made:
            continue
        for each in node.body:
            if isinstance(each, ast.AnnAssign) and "repr=False" not in ast.unparse(each):
                yield f"{node.name}.{ast.unparse(each.target)}", ast.unparse(each.annotation)


def test_no_bytes_and_no_array_in_a_repr() -> None:
    found = list(trees())
    arrays = {
        name.id
        for tree in found
        for each in tree.body
        if isinstance(each, ast.Assign) and ast.unparse(each.value).startswith("NDArray[")
        for name in each.targets
        if isinstance(name, ast.Name)
    }
    assert {"Ring", "Words"} <= arrays  # what this looks for is there
    data = re.compile(rf"\b({'|'.join(('bytes', 'memoryview', 'NDArray', *sorted(arrays)))})\b")
    told = {
        field
        for tree in found
        for field, kind in shown(tree)
        if data.search(kind) and not kind.startswith("Callable")
    }
    assert told == PUBLIC


def test_a_graph_tells_its_borders_and_no_weight() -> None:
    graph = cases.mlp()
    text = repr(graph)
    head = "<Graph x: float32[16] -> y: float32[10]; 7 nodes, 838 parameters, hash "
    assert text == f"{head}{graph.hash[:12]}>"
    assert repr(graph.public()) == text.replace("838 parameters", "public")


def test_other_weights_read_alike_but_for_the_hash() -> None:
    graph = cases.mlp()
    others = {name: np.zeros_like(array) for name, array in graph.parameters.items()}
    other = Graph(graph.nodes, others, bytes(range(32)))
    assert repr(other).replace(other.hash[:12], graph.hash[:12]) == repr(graph)


def test_a_call_keeps_its_request_to_itself() -> None:
    assert repr(Call("Infer", b"a share", 1)) == "<Call of Infer at server 1>"


@pytest.mark.parametrize(
    ("client", "text"),
    [
        (lambda: HeClient("he:1", tls=InsecurePlaintext()), "<HeClient of he:1>"),
        (lambda: MpcClient(["a:1", "b:2"], tls=InsecurePlaintext()), "<MpcClient of a:1, b:2>"),
    ],
    ids=["he", "mpc"],
)
def test_a_client_tells_whom_it_asks(client, text) -> None:
    with client() as made:
        assert repr(made) == text
    assert repr(made) == text.replace(">", " closed>")
