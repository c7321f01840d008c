"""Loaders against small files in the true formats, and against hostile ones."""

import gzip
import io
import os
import pickle
import struct

import numpy as np
import pytest

from secure_quant.errors import MalformedDataset, ValueOutOfRange
from secure_quant.quantizer.zoo import cifar10, mnist
from secure_quant.quantizer.zoo.pickled import read_pickle

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def idx(array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def python2(batch):
    """``cPickle.dumps(batch, 2)`` of Python 2, in which str is bytes: dict, list, str, int and
    uint8 arrays, with the memo's BINPUTs, as the handed-out files have them."""
    out, memo = io.BytesIO(), iter(range(256))

    def put():
        out.write(b"q" + bytes((next(memo),)))

    def dump(value):
        if isinstance(value, dict):
            out.write(b"}")
            put()
            out.write(b"(")
            for key, inner in value.items():
                dump(key)
                dump(inner)
            out.write(b"u")
        elif isinstance(value, list):
            out.write(b"]")
            put()
            out.write(b"(")
            for inner in value:
                dump(inner)
            out.write(b"e")
        elif isinstance(value, bytes):
            short = len(value) < 256
            size = struct.pack("<B" if short else "<i", len(value))
            out.write((b"U" if short else b"T") + size + value)
        elif isinstance(value, int):
            out.write(b"K" + bytes((value,)) if value < 256 else b"M" + struct.pack("<H", value))
        else:
            out.write(
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            )
            out.write(b"(K\x01")
            dump(value.shape[0])
            dump(value.shape[1])
            out.write(b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R")
            out.write(b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
            dump(value.tobytes())
            out.write(b"tb")

    out.write(b"\x80\x02")
    dump(batch)
    out.write(b".")
    return out.getvalue()


def pixels(n, seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


@pytest.fixture
def mnist_files():
    made = {}
    for seed, (half, n) in enumerate((("train", 5), ("t10k", 3))):
        made[f"{half}-images-idx3-ubyte"] = idx(pixels(n, seed, 28, 28))
        made[f"{half}-labels-idx1-ubyte"] = idx(np.arange(n).astype(np.uint8))
    return made


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def cifar_batches():
    return {name: (pixels(4, i, 3072), (np.arange(4) + i) % 10) for i, name in enumerate(BATCHES)}


def binary(batches):
    return {
        f"{name}.bin": np.column_stack([y.astype(np.uint8), x]).tobytes()
        for name, (x, y) in batches.items()
    }


def pickled(batches):
    return {
        name: python2({
            b"batch_label": b"a batch", b"labels": y.tolist(), b"data": x,
            b"filenames": [b"%d.png" % i for i in range(len(y))],
        })
        for name, (x, y) in batches.items()
    }  # fmt: skip


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("form", ["plain", "gz", "dot"])
def test_mnist(tmp_path, mnist_files, place, form):
    if form == "gz":
        mnist_files = {f"{name}.gz": gzip.compress(data) for name, data in mnist_files.items()}
    elif form == "dot":
        mnist_files = {name.replace("-idx", ".idx"): d for name, d in mnist_files.items()}
    write(tmp_path / place, mnist_files)
    data = mnist(tmp_path)
    assert data.train_x.shape == (5, 1, 28, 28)
    assert data.test_x.shape == (3, 1, 28, 28)
    assert data.train_x.dtype == np.float32
    np.testing.assert_array_equal(data.train_x[:, 0] * 255, pixels(5, 0, 28, 28))
    np.testing.assert_array_equal(data.test_x[:, 0] * 255, pixels(3, 1, 28, 28))
    assert data.train_y.tolist() == [0, 1, 2, 3, 4]


def test_mnist_padded_and_limited(tmp_path, mnist_files):
    data = mnist(write(tmp_path, mnist_files), pad=2, limit=2)
    assert data.train_x.shape == data.test_x.shape == (2, 1, 32, 32)
    assert not data.train_x[:, :, :2].any()
    np.testing.assert_array_equal(data.train_x[:, 0, 2:30, 2:30] * 255, pixels(5, 0, 28, 28)[:2])
    for options in ({"pad": -1}, {"limit": 0}):
        with pytest.raises(ValueOutOfRange):
            mnist(tmp_path, **options)


def hostile_idx(good):
    yield "empty", b""
    yield "magic", b"\0\0\x09\x03" + good[4:]
    yield "rank", idx(np.zeros((2, 2), np.uint8))
    yield "truncated", good[:-1]
    yield "longer", good + b"\0"
    yield "no items", good[:4] + struct.pack(">3I", 0, 28, 28)
    yield "four billion items", good[:4] + struct.pack(">3I", 2**32 - 1, 28, 28) + good[16:]
    yield "sizes that wrap around", good[:4] + struct.pack(">3I", 2**31, 2**31, 4) + good[16:]
    yield "other side", idx(np.zeros((5, 27, 28), np.uint8))
    yield "fewer images", idx(np.zeros((4, 28, 28), np.uint8))


HOSTILE_IDX = dict(hostile_idx(idx(pixels(5, 0, 28, 28))))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("kind", HOSTILE_IDX)
def test_broken_idx_files_are_refused(tmp_path, mnist_files, kind, packed):
    data = HOSTILE_IDX[kind]
    del mnist_files["train-images-idx3-ubyte"]
    name = "train-images-idx3-ubyte" + (".gz" if packed else "")
    write(tmp_path, mnist_files | {name: gzip.compress(data) if packed else data})
    with pytest.raises(MalformedDataset):
        mnist(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-9], lambda d: d[:12] + b"x" * 40, lambda d: d[:1]]
)
def test_broken_gzip_is_refused(tmp_path, mnist_files, damage):
    name = "t10k-labels-idx1-ubyte"
    packed = gzip.compress(mnist_files.pop(name))
    with pytest.raises(MalformedDataset):
        mnist(write(tmp_path, mnist_files | {f"{name}.gz": damage(packed)}))


def test_labels_beyond_the_classes_are_refused(tmp_path, mnist_files):
    mnist_files["train-labels-idx1-ubyte"] = idx(np.full(5, 10, np.uint8))
    with pytest.raises(MalformedDataset, match="0 to 9"):
        mnist(write(tmp_path, mnist_files))


@pytest.mark.parametrize("missing", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_missing_files_are_named(tmp_path, mnist_files, missing):
    del mnist_files[missing]
    with pytest.raises(MalformedDataset, match=missing):
        mnist(write(tmp_path, mnist_files))


@pytest.mark.parametrize(
    ("form", "place"),
    [(binary, ""), (binary, "cifar-10-batches-bin"), (pickled, ""),
     (pickled, "cifar-10-batches-py")],
)  # fmt: skip
def test_cifar(tmp_path, form, place):
    batches = cifar_batches()
    write(tmp_path / place, form(batches))
    data = cifar10(tmp_path)
    assert data.train_x.dtype == np.float32
    want = np.concatenate([batches[name][0] for name in BATCHES[:5]]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.train_x * 255, want)
    np.testing.assert_array_equal(
        data.test_x * 255, batches["test_batch"][0].reshape(-1, 3, 32, 32)
    )
    assert data.train_y.tolist() == [(i + j) % 10 for i in range(5) for j in range(4)]
    assert len(cifar10(tmp_path, limit=6).train_x) == 6


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 3072, b"\x0a" + b"\0" * 3072, b"\0" * 3073 + b"\0"],
    ids=["empty", "short", "label 10", "a byte more"],
)
def test_broken_cifar_records_are_refused(tmp_path, data):
    files = binary(cifar_batches()) | {"data_batch_3.bin": data}
    with pytest.raises(MalformedDataset, match="data_batch_3"):
        cifar10(write(tmp_path, files))


@pytest.mark.parametrize("form", [binary, pickled])
def test_a_missing_batch_is_named(tmp_path, form):
    files = {n: d for n, d in form(cifar_batches()).items() if "data_batch_4" not in n}
    with pytest.raises(MalformedDataset, match="data_batch_4"):
        cifar10(write(tmp_path, files))


def test_the_pickle_written_here_is_one():
    """Python's own reader agrees with what the tests write and the loader reads."""
    batch = {b"labels": [1, 2, 300], b"name": b"x" * 300, b"deep": [{b"a": []}]}
    data = python2(batch)
    assert pickle.loads(data, encoding="bytes") == batch == read_pickle(data, "x")  # noqa: S301


class Runs:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


MARKER = "secure_quant_pickle_ran"
CALLS = [
    (os.putenv, MARKER, "1"), (os.system, "true"), (eval, "1 + 1"), (exec, "x = 1"),
    (getattr, "x", "upper"), (print, "x"), (np.frombuffer, b"x"), (bytes, 2**40),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_something_is_refused(tmp_path, monkeypatch, call, protocol):
    def ran(*_):
        raise AssertionError("a name in the pickle was looked up")

    data = pickle.dumps({"data": Runs(*call), "labels": []}, protocol)
    monkeypatch.setattr(pickle, "loads", ran)
    monkeypatch.setattr(pickle, "Unpickler", ran)
    monkeypatch.setattr(pickle, "_Unpickler", ran)
    files = pickled(cifar_batches()) | {"test_batch": data}
    with pytest.raises(MalformedDataset, match="test_batch"):
        cifar10(write(tmp_path, files))


ARRAY = python2({b"data": pixels(2, 0, 3072), b"labels": [1, 2]})


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80\x02", b"\x80\x02}", b"\x80\x02q\x00.", b"\x80\x02h\x07.", b"N", b"(.",
        b"0.", b"\x80\x02(((tR.", b"\x80\x02}]]s.", b"\x80\x02K\x01K\x02a.", b"\x80\x02K\x01Nb.",
        b"\x80\x02cnumpy\ndtype\n(tR.", b"\x80\x02cnumpy\nndarray\n)R.",
        b"\x80\x02cnumpy\nload\n.", b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02cbuiltins\neval\nU\x011\x85R.", b"\x80\x02c__builtin__\neval\nU\x011\x85R.",
        b"\x80\x02r\xff\xff\xff\xff.", b"\x80\x02T\xff\xff\xff\x7fabc.", b"\x80\x02\x82\x01.",
        b"\x80\x02U\x01xQ.", b"I1\n.", b"P1\n.", ARRAY[:-1], ARRAY[:200],
        b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns.",  # a key whose hash would recurse
    ],
)  # fmt: skip
def test_nonsense_is_refused(data):
    with pytest.raises(MalformedDataset):
        read_pickle(data, "x")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"M\x00\x0c", b"M\x01\x0c"),  # a shape with more elements than bytes
        (b"M\x00\x0c", b"J\xff\xff\xff\xff"),
        (b"U\x02u1", b"U\x02O8"),
        (b"U\x02u1", b"U\x02f8"),
        (b"e", b"eU\x06labels]s"),
    ],
)
def test_arrays_are_checked_before_numpy_sees_them(tmp_path, old, new):
    head, middle, tail = ARRAY.partition(old)
    assert middle
    files = pickled(cifar_batches()) | {"data_batch_1": head + new + tail}
    with pytest.raises(MalformedDataset):
        cifar10(write(tmp_path, files))


@pytest.mark.parametrize("labels", [[1], [1, 10], [1, b"2"], [True, 2]])
def test_labels_of_pickles_are_checked(tmp_path, labels):
    made = python2({b"data": pixels(2, 0, 3072), b"labels": [1, 2]})
    batch = b"".join(
        b"\x88" if x is True else b"U\x01" + x if isinstance(x, bytes) else b"K" + bytes((x,))
        for x in labels
    )
    data = made.replace(b"(K\x01K\x02e", b"(" + batch + b"e")
    assert data != made
    files = pickled(cifar_batches()) | {"data_batch_1": data}
    with pytest.raises(MalformedDataset):
        cifar10(write(tmp_path, files))
