"""No model file, whatever its bytes, raises anything but a ModelError or takes much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import model_forge as forge
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import ample

from secure_quant.errors import (
    HashMismatch,
    InvalidGraph,
    MalformedModel,
    ModelError,
    OverflowRisk,
    UnsupportedVersion,
)
from secure_quant.ir import artifact, codec, public

HASH = artifact.decode(forge.HONEST).hash
DEEP = b"[" * 100_000


def outcome(data: bytes) -> str:
    """The hash of what was read, or the name of the error; any other exception fails the test."""
    try:
        return artifact.decode(data).hash
    except ModelError as error:
        name = type(error).__name__
        return name if len(str(error)) < 5000 else f"a message without end in {name}, {'!' * 64}"


def test_every_prefix_is_refused():
    for length in range(len(forge.HONEST)):
        with pytest.raises(MalformedModel):
            artifact.decode(forge.HONEST[:length])


def test_bytes_after_the_end_are_refused():
    for extra in (b"\0", b"}", bytes(1000)):
        with pytest.raises(MalformedModel):
            artifact.decode(forge.HONEST + extra)


def test_every_flipped_bit_is_noticed_or_means_nothing():
    """A flip may hit an unused code or blank; it never yields another model."""
    ignored = 0
    for place in range(len(forge.HONEST)):
        for bit in range(8):
            data = bytearray(forge.HONEST)
            data[place] ^= 1 << bit
            found = outcome(bytes(data))
            if len(found) == 64:
                assert found == HASH
                ignored += 1
    # 12 unused codebook entries; hex digits of the commitment in the other case
    assert ignored <= 12 * 8 + 128


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bytes_replaced_at_random(data):
    raw = bytearray(forge.HONEST)
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(raw) - 1))
        new = data.draw(st.binary(max_size=12))
        raw[start : start + data.draw(st.integers(0, 12))] = new
    found = outcome(bytes(raw))
    assert len(found) < 64 or found == HASH


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(data):
    assert len(outcome(data)) < 64


CONTAINERS = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "header longer than the file": (2**63).to_bytes(8, "little") + b"{}",
    "header above the limit": (9 * 2**20).to_bytes(8, "little") + bytes(9 * 2**20),
    "not JSON": forge.container(b"abc"),
    "not UTF-8": forge.container(b'{"\xff":1}'),
    "UTF-16": forge.container("{}".encode("utf-16")),
    "a list": forge.container([]),
    "a number": forge.container(17),
    "deep": forge.container(DEEP),
    "deep objects": forge.container(b'{"a":' * 100_000),
    "long number": forge.container(b'{"a":' + b"9" * 10_000 + b"}"),
    "metadata a list": forge.container({"__metadata__": []}),
    "metadata null": forge.container({"__metadata__": None}),
    "metadata of numbers": forge.container({"__metadata__": {"format": 1}}),
    "metadata of objects": forge.container({"__metadata__": {"format": {}}}),
    "metadata twice": forge.container(b'{"__metadata__":{},"__metadata__":{}}'),
    "format twice": forge.container(b'{"__metadata__":{"format":"a","format":"b"}}'),
    "tensor twice": forge.container(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
        b'"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', bytes(4)),
    "entry null": forge.container({"a": None}),
    "entry a list": forge.container({"a": [1, 2, 3]}),
    "entry a string": forge.container({"a": "dtype shape data_offsets"}),
    "no dtype": forge.container({"a": {"shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "more than three fields": forge.container({"a": {**forge.entry(), "more": 1}}, bytes(4)),
    "float dtype": forge.container({"a": forge.entry("F32", [1])}, bytes(4)),
    "object dtype": forge.container({"a": forge.entry("O")}, bytes(4)),
    "dtype a list": forge.container({"a": forge.entry(["U8"])}, bytes(4)),
    "shape a number": forge.container({"a": forge.entry(shape=4)}, bytes(4)),
    "shape a string": forge.container({"a": forge.entry(shape="4")}, bytes(4)),
    "shape an object": forge.container({"a": forge.entry(shape={"4": 1})}, bytes(4)),
    "shape of floats": forge.container({"a": forge.entry(shape=[4.0])}, bytes(4)),
    "shape of booleans": forge.container({"a": forge.entry(shape=[True, 4])}, bytes(4)),
    "shape of null": forge.container({"a": forge.entry(shape=[None])}, bytes(4)),
    "negative axes": forge.container({"a": forge.entry(shape=[-2, -2])}, bytes(4)),
    "nine axes": forge.container({"a": forge.entry(shape=[1] * 8 + [4])}, bytes(4)),
    "a million axes": forge.container({"a": forge.entry(shape=[9] * 1_000_000)}, bytes(4)),
    "nothing times a giant": forge.container({"a": forge.entry(shape=[0, 2**70], offsets=[0, 0])}),
    "nothing times giants": forge.container(
        {"a": forge.entry(shape=[0, *[2**31] * 6], offsets=[0, 0])}),
    "product wraps to 4": forge.container({"a": forge.entry(shape=[2**32, 2**32 + 1])}, bytes(4)),
    "smaller than its shape": forge.container({"a": forge.entry(shape=[5])}, bytes(4)),
    "larger than its shape": forge.container({"a": forge.entry(shape=[3])}, bytes(4)),
    "giant shape": forge.container({"a": forge.entry(shape=[2**40], offsets=[0, 2**40])}),
    "one offset": forge.container({"a": forge.entry(offsets=[0])}, bytes(4)),
    "three offsets": forge.container({"a": forge.entry(offsets=[0, 4, 4])}, bytes(4)),
    "offsets an object": forge.container({"a": forge.entry(offsets={"0": 0, "4": 4})}, bytes(4)),
    "offsets of floats": forge.container({"a": forge.entry(offsets=[0.0, 4.0])}, bytes(4)),
    "offsets NaN": forge.container(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[NaN,NaN]}}', bytes(4)),
    "offsets of booleans": forge.container(
        {"a": forge.entry(shape=[1], offsets=[False, True])}, bytes(1)),
    "negative offsets": forge.container({"a": forge.entry(offsets=[-4, 0])}, bytes(4)),
    "backward offsets": forge.container({"a": forge.entry(offsets=[4, 0])}, bytes(4)),
    "beyond the end": forge.container({"a": forge.entry(offsets=[4, 8])}, bytes(4)),
    "a gap": forge.container({"a": forge.entry(offsets=[1, 5])}, bytes(5)),
    "a tail": forge.container({"a": forge.entry()}, bytes(5)),
    "overlap": forge.container({"a": forge.entry(), "b": forge.entry(offsets=[2, 6])}, bytes(6)),
    "the same bytes twice": forge.container({"a": forge.entry(), "b": forge.entry()}, bytes(4)),
    "mixed offsets": forge.container(
        {"a": forge.entry(), "b": forge.entry(offsets="ab")}, bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name):
    with pytest.raises(MalformedModel):
        artifact.read_tensors(CONTAINERS[name])
    with pytest.raises(MalformedModel):
        artifact.decode(CONTAINERS[name])


def zeros(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.zeros(shape, dtype)


CODES, BOOK = zeros(20), np.zeros((1, 16), np.int8)

FILES = {
    "no metadata": (MalformedModel, forge.with_metadata(format=None)),
    "another kind": (MalformedModel, forge.with_metadata(format="pt")),
    "the next version": (UnsupportedVersion, forge.with_metadata(format="secure-quant/5")),
    "a long version": (
        UnsupportedVersion, forge.with_metadata(format="secure-quant/" + "9" * 10**6)),
    "one name more": (MalformedModel, forge.with_metadata(more="x")),
    "no hash": (MalformedModel, forge.with_metadata(hash=None)),
    "no commitment": (MalformedModel, forge.with_metadata(commitment=None)),
    "hash of another": (HashMismatch, forge.with_metadata(hash="0" * 64)),
    "hash empty": (HashMismatch, forge.with_metadata(hash="")),
    "hash of strange letters": (HashMismatch, forge.with_metadata(hash="\ud800é" * 1000)),
    "commitment not hex": (MalformedModel, forge.with_metadata(commitment="x" * 64)),
    "commitment short": (MalformedModel, forge.with_metadata(commitment="00")),
    "commitment of another": (HashMismatch, forge.with_metadata(commitment="0" * 64)),
    "no graph": (MalformedModel, forge.with_tensors(graph=None)),
    "no tables": (MalformedModel, forge.with_tensors(tables=None)),
    "no multipliers": (MalformedModel, forge.with_tensors(multipliers=None)),
    "no salt": (MalformedModel, forge.with_tensors(salt=None)),
    "salt short": (MalformedModel, forge.with_tensors(salt=zeros(31))),
    "salt empty": (ModelError, forge.with_tensors(salt=zeros(0))),
    "salt of another": (HashMismatch, forge.with_tensors(salt=zeros(32))),
    "salt two axes": (MalformedModel, forge.with_tensors(salt=zeros(1, 32))),
    "tables wide": (MalformedModel, forge.with_tensors(tables=zeros(16, dtype=np.int16))),
    "tables int32": (MalformedModel, forge.with_tensors(tables=zeros(16, dtype=np.int32))),
    "tables too many": (MalformedModel, forge.with_tensors(tables=zeros(17, dtype=np.int8))),
    "tables too few": (MalformedModel, forge.with_tensors(tables=zeros(15, dtype=np.int8))),
    "multipliers too many": (MalformedModel, forge.with_tensors(multipliers=zeros(5) + 1)),
    "multipliers too few": (MalformedModel, forge.with_tensors(multipliers=zeros(3) + 1)),
    "multipliers int8": (MalformedModel, forge.with_tensors(multipliers=zeros(4, dtype=np.int8))),
    "multipliers of 0": (InvalidGraph, forge.with_tensors(multipliers=zeros(4))),
    "no weight": (InvalidGraph, forge.with_tensors(fc1__weight=None)),
    "no bias": (InvalidGraph, forge.with_tensors(fc1__bias=None)),
    "a weight more": (InvalidGraph, forge.with_tensors(fc3__weight=zeros(2, 2, dtype=np.int8))),
    "a name without a dot": (InvalidGraph, forge.with_tensors(weight=zeros(1))),
    "weight int32": (InvalidGraph, forge.with_tensors(fc1__weight=zeros(2, 3, dtype=np.int32))),
    "weight turned": (InvalidGraph, forge.with_tensors(fc1__weight=zeros(3, 2, dtype=np.int8))),
    "weight changed": (HashMismatch, forge.with_tensors(fc1__weight=zeros(2, 3, dtype=np.int8))),
    "weight too large": (OverflowRisk, forge.with_tensors(
        fc1__bias=np.full(2, 2**31 - 1, np.int32))),
    "weight in both forms": (MalformedModel, forge.with_tensors(
        fc2__weight=zeros(2, 20, dtype=np.int8))),
    "codes short": (MalformedModel, forge.with_tensors(fc2__codes=zeros(19))),
    "codes long": (MalformedModel, forge.with_tensors(fc2__codes=zeros(21))),
    "codes int8": (MalformedModel, forge.with_tensors(fc2__codes=zeros(20, dtype=np.int8))),
    "codes two axes": (MalformedModel, forge.with_tensors(fc2__codes=zeros(2, 10))),
    "codes without a book": (MalformedModel, forge.with_tensors(fc2__codebook=None)),
    "a book without codes": (MalformedModel, forge.with_tensors(fc2__codes=None)),
    "book of 15": (MalformedModel, forge.with_tensors(fc2__codebook=BOOK[:, :15])),
    "book of 3 rows": (MalformedModel, forge.with_tensors(fc2__codebook=np.repeat(BOOK, 3, 0))),
    "book of no row": (MalformedModel, forge.with_tensors(fc2__codebook=BOOK[:0])),
    "book uint8": (MalformedModel, forge.with_tensors(fc2__codebook=zeros(1, 16))),
    "book changed": (HashMismatch, forge.with_tensors(fc2__codebook=BOOK)),
    "codes of a bias": (MalformedModel, forge.with_tensors(
        **{"fc1.bias__codes": CODES, "fc1.bias__codebook": BOOK})),
    "codes of nobody": (MalformedModel, forge.with_tensors(zz__codes=CODES, zz__codebook=BOOK)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files(name):
    error, data = FILES[name]
    with pytest.raises(error) as caught:
        artifact.decode(data)
    assert len(str(caught.value)) < 5000


def test_the_forge_itself_is_honest():
    assert artifact.decode(forge.with_graph(forge.graph_text())).hash == HASH
    assert artifact.decode(forge.with_tensors()).hash == HASH


TEXT = forge.graph_text()
LINE = TEXT.decode()
GRAPHS = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "no nodes": b'{"version":1}',
    "no version": b'{"nodes":[]}',
    "one name more": b'{"more":1,' + TEXT[1:],
    "nodes an object": b'{"nodes":{},"version":1}',
    "nodes of lists": b'{"nodes":[[],[]],"version":1}',
    "nodes of null": b'{"nodes":[null],"version":1}',
    "no node": b'{"nodes":[],"version":1}',
    "deep": b'{"nodes":' + DEEP,
    "deep in a field": LINE.replace('"shape":[3]', '"shape":' + "[" * 900 + "]" * 900).encode(),
    "trailing text": TEXT + b" x",
    "trailing blank": TEXT + b" ",
    "leading blank": b" " + TEXT,
    "byte order mark": b"\xef\xbb\xbf" + TEXT,
    "UTF-16": LINE.encode("utf-16"),
    "UTF-32": LINE.encode("utf-32-le"),
    "not UTF-8": TEXT.replace(b'"fc1"', b'"fc\xff"'),
    "escaped letter": TEXT.replace(b'"x"', b'"\\u0078"'),
    "name twice": TEXT.replace(b'"bias":true', b'"bias":true,"bias":true'),
    "other order": b'{"version":1,' + TEXT[1 : -len(b',"version":1}')] + b"}",
    "version 1.0": TEXT.replace(b'"version":1', b'"version":1.0'),
    "version true": TEXT.replace(b'"version":1', b'"version":true'),
    "version a list": TEXT.replace(b'"version":1', b'"version":' + b"[" * 400 + b"]" * 400),
    "scale 5e-1": TEXT.replace(b'"scale":0.5', b'"scale":5e-1'),
    "scale an integer": TEXT.replace(b'"scale":2.0', b'"scale":2'),
    "scale NaN": TEXT.replace(b'"scale":0.5', b'"scale":NaN'),
    "scale Infinity": TEXT.replace(b'"scale":0.5', b'"scale":Infinity'),
    "scale 1e999": TEXT.replace(b'"scale":0.5', b'"scale":1e999'),
    "scale 0": TEXT.replace(b'"scale":0.5', b'"scale":0.0'),
    "scale a string": TEXT.replace(b'"scale":0.5', b'"scale":"0.5"'),
    "shift -0": TEXT.replace(b'"shift":9', b'"shift":-0'),
    "shift true": TEXT.replace(b'"shift":9', b'"shift":true'),
    "long number": TEXT.replace(b'"shift":9', b'"shift":' + b"9" * 5000),
    "large number": TEXT.replace(b'"offset":-4096', b'"offset":-1152921504606846977'),
    "4 MiB and more": b'{"nodes":[' + b" " * (4 * 2**20) + TEXT[10:],
    "many empty lists": b'{"nodes":[' + b",".join([b"[]"] * 10**6) + b'],"version":1}',
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name):
    assert GRAPHS[name] != TEXT
    with pytest.raises(ModelError) as caught:
        artifact.decode(forge.with_graph(GRAPHS[name]))
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_from_the_wire(name):
    """There no hash stands beside the graph: what is not canonical is refused for itself."""
    tensors, metadata = forge.parts()
    wide = tensors["tables"].astype("<i2").tobytes()
    parts = codec.PublicParts(GRAPHS[name], wide, tensors["multipliers"].tobytes())
    with pytest.raises(ModelError):
        public.from_parts(parts, commitment=bytes.fromhex(metadata["commitment"]))


def test_another_version_is_called_so():
    with pytest.raises(UnsupportedVersion):
        artifact.decode(forge.with_graph(TEXT.replace(b'"version":1', b'"version":5')))
    with pytest.raises(MalformedModel):  # 2 is for graphs with ports
        artifact.decode(forge.with_graph(TEXT.replace(b'"version":1', b'"version":2')))


VALUES = [
    None, True, -1, 0, 3, 2**31, 2**47, 2**60, -(2**47), 1.5, "x", "", "y" * 600, [], [1],
    [0, 0], [-1, -1], [2**40, 2**40], [2**47] * 6, [2**40] * 3, [1] * 5000, ["x"],
    ["q1", "q1"], [[1, 1]],
    {}, {"a": 1}, "\ud800", "é",
]  # fmt: skip


def test_every_field_with_every_wrong_value():
    """Whatever stands in a field, a model or a named error comes out, at once."""
    nodes = json.loads(TEXT)["nodes"]
    refused = 0
    for place, node in enumerate(nodes):
        for field in node:
            for value in VALUES:
                refused += len(outcome(forge.with_field(place, field, value))) < 64
            data = forge.with_document(lambda d, p=place, f=field: d["nodes"][p].pop(f))
            assert outcome(data) == "MalformedModel"
    assert refused > 700


WINDOWS = {
    "padding": [2**40, 0], "kernel": [2**40, 1], "stride": [2**47, 2**47],
    "dilation": [2**40, 2**40], "in_channels": 2**40, "out_channels": 2**40, "groups": 2**40,
    "bound": 2**47,
}  # fmt: skip


@pytest.mark.parametrize("field", WINDOWS)
def test_giant_windows_are_refused_before_memory_is_taken(field):
    node = {
        "op": "Conv2d", "name": "c", "inputs": ["x"], "in_channels": 1, "out_channels": 4,
        "kernel": [1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1,
        "bias": False, "bound": 128, "scale": 1.0,
    }  # fmt: skip

    def change(document):
        document["nodes"] = [
            {**document["nodes"][0], "shape": [1, 1, 4]}, {**node, field: WINDOWS[field]},
            {**document["nodes"][-1], "inputs": ["c"], "multiplier": 4, "axis": 0},
        ]  # fmt: skip

    found = outcome(forge.with_document(change, tables=False))
    if field in ("stride", "dilation"):  # harmless on one window of one pixel
        assert len(found) == 64
    else:
        assert found in ("InvalidGraph", "OverflowRisk")


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.integers(0, 30))
def test_public_graphs_from_the_wire(noise, cut):
    honest = public.encode_public(artifact.decode(forge.HONEST))
    for data in (honest[: len(honest) - 1 - cut], honest + b"\0" + noise, noise + honest, noise):
        with pytest.raises(ModelError):
            public.decode_public(data, commitment=bytes(32))
    for commitment in (b"", bytes(31), bytes(33)):
        with pytest.raises(ModelError):
            public.decode_public(honest, commitment=commitment)


CAP = """
import resource, sys
sys.path[:0] = {paths!r}
from hostile import test_model_files as t
from secure_quant.errors import ModelError
from secure_quant.ir import artifact
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (limit := {limit}, limit))
worst = [t.CONTAINERS[n] for n in t.CONTAINERS] + [data for _, data in t.FILES.values()]
worst += [t.forge.with_graph(g) for g in t.GRAPHS.values()]
worst.append(t.forge.container(b'{{"a":[' + b"[]," * 2_700_000 + b"[]]}}"))
for data in worst:
    try:
        artifact.decode(data)
    except ModelError:
        continue
    raise SystemExit("taken for a model")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_hostile_file_takes_much_memory():
    """All of them in a fresh process, whose growth is at most 400 MiB (a header of 8 MiB can hold
    nearly three million empty lists); under a hard limit nothing ends in MemoryError."""
    here = Path(__file__).parent
    code = CAP.format(paths=[str(here.parent), str(here.parent.parent)], limit=4 * 2**30)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=ample(100),
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 400 * 2**20
