"""What the commands read from users: arrays and the owner's Python file."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from secure_quant.errors import ConfigError, InputError
from secure_quant_cli.arrays import (
    part_of,
    read_array,
    read_inputs,
    read_labels,
    samples_of,
    write_arrays,
)
from secure_quant_cli.owner_code import build_model


def test_named_array_wins(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=np.arange(3), x=np.ones((3, 2)))
    assert np.array_equal(read_array(tmp_path / "a.npz"), np.ones((3, 2)))
    labels = read_labels(tmp_path / "a.npz")
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]


def test_the_only_array_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.ones(3))
    np.save(tmp_path / "b.npy", np.zeros(2))
    assert read_array(tmp_path / "a.npz").sum() == 3
    assert read_array(tmp_path / "b.npy").shape == (2,)
    assert read_labels(tmp_path / "b.npy") is None


def test_several_arrays_without_x_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", u=np.ones(3), v=np.ones(3))
    with pytest.raises(InputError, match="no array 'x'"):
        read_array(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "array", [np.array([{"a": 1}], object), np.array(["text"]), np.array([1j])]
)
def test_anything_but_numbers_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(InputError):
        read_array(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01", b"x" * 100])
def test_a_broken_file_is_a_named_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError):
        read_array(tmp_path / "a.npz")


@pytest.mark.parametrize(("name", "way"), [("x.pt", "tensor.numpy"), ("x.csv", "loadtxt")])
def test_numbers_in_files_of_other_kinds_are_refused_with_a_way_out(
    tmp_path: Path, name: str, way: str
) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as file:  # as torch.save writes it
        file.writestr("x/data.pkl", b"no array")
    if name == "x.csv":
        (tmp_path / name).write_text("1,2")
    with pytest.raises(InputError, match=rf"{name}.*{way}"):
        read_array(tmp_path / name)


OWNER = """
from torch import nn
from beside import WIDTH

def build():
    import lazily
    return nn.Sequential(nn.Dropout(), nn.Linear(WIDTH, lazily.OUT))

def wrong():
    return 7

text = "no function"
"""


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "owner.py").write_text(OWNER)
    (tmp_path / "beside.py").write_text("WIDTH = 4")
    (tmp_path / "lazily.py").write_text("OUT = 2")
    return tmp_path / "owner.py"


def test_owner_code_is_called(owner: Path) -> None:
    model = build_model(f"{owner}:build")
    assert model[1].weight.shape == (2, 4)
    assert not model.training


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("{}", "expected FILE.py:FACTORY"),
        ("{}:", "expected FILE.py:FACTORY"),
        ("{}:not a name", "expected FILE.py:FACTORY"),
        ("{}.txt:build", "expected FILE.py:FACTORY"),
        ("{}:absent", "no callable 'absent'"),
        ("{}:text", "no callable 'text'"),
        ("{}:wrong", "got int"),
        ("/nowhere/model.py:build", "no such file"),
    ],
)
def test_unusable_owner_code_is_a_named_error(owner: Path, reference: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_model(reference.format(owner))


def test_arrays_of_named_inputs(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, ids=np.arange(6).reshape(2, 3), mask=np.ones((2, 3), bool), y=np.zeros(2, int))
    found = read_inputs(path, ["mask", "ids"])
    assert isinstance(found, dict)
    assert list(found) == ["mask", "ids"]
    assert samples_of(found) == 2
    assert part_of(found, 1, None)["ids"].tolist() == [[3, 4, 5]]
    with pytest.raises(InputError, match="no array 'age'"):
        read_inputs(path, ["ids", "age"])
    with pytest.raises(InputError, match="no array 'x'"):
        read_inputs(path, None)
    np.savez(tmp_path / "one.npz", whatever=np.ones((2, 3)))
    assert list(read_inputs(tmp_path / "one.npz", ["row"])) == ["row"]


def test_arrays_written_under_any_name(tmp_path: Path) -> None:
    arrays = {"file": np.ones(2), "a/b": np.arange(3), "x.npy": np.zeros((2, 2), np.float32)}
    write_arrays(tmp_path / "out", arrays)
    with np.load(tmp_path / "out") as loaded:
        assert {name: loaded[name].tolist() for name in arrays} == {
            name: array.tolist() for name, array in arrays.items()
        }
