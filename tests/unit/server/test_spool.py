"""A dealer's items on disk: each read once, by the process that wrote it, or never."""

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_quant.errors import ConfigError
from secure_quant_server.mpc import spool as module
from secure_quant_server.mpc.spool import SUFFIX, TAG_BYTES, Spool


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def test_round_trip_in_any_order_and_each_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "new" / "folder", 10_000)
    items = [bytes([number]) * (100 + number) for number in range(5)]
    numbers = [spool.put(item) for item in items]
    assert spool.used == sum(len(item) + TAG_BYTES for item in items)
    for place in (3, 0, 4, 1, 2):
        taken = spool.take(numbers[place])
        assert taken is not None
        assert bytes(taken) == items[place]
        assert spool.take(numbers[place]) is None
    assert spool.used == 0
    assert files(tmp_path / "new" / "folder") == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 20)), max_size=40))
def test_never_above_its_bound_and_never_the_same_item_twice(steps: list[bytes | int]) -> None:
    """bytes: put them; an integer: take that one of those put, if it was taken or not."""
    with tempfile.TemporaryDirectory() as name:
        folder, limit = Path(name), 800
        spool, put, left = Spool(folder, limit), [], {}
        for step in steps:
            if isinstance(step, bytes):
                fits = sum(map(len, left.values())) + TAG_BYTES * (len(left) + 1) + len(step)
                number = spool.put(step)
                assert (number is not None) == (fits <= limit)
                if number is not None:
                    put.append(number)
                    left[number] = step
            elif put:
                number = put[step % len(put)]
                taken = spool.take(number)
                expected = left.pop(number, None)
                assert (None if taken is None else bytes(taken)) == expected
            assert spool.used == sum(path.stat().st_size for path in files(folder)) <= limit
        spool.close()
        assert files(folder) == []


def test_what_lies_there_is_sealed_and_only_the_owners(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 10_000)
    item = b"plain" * 50
    spool.put(item)
    spool.put(item)
    one, two = files(tmp_path / "spool")
    assert b"plain" not in one.read_bytes()
    assert one.read_bytes() != two.read_bytes()
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "gone"])
def test_a_file_that_was_changed_is_no_item(tmp_path: Path, damage: str) -> None:
    reasons = []
    spool = Spool(tmp_path, 10_000, reasons.append)
    numbers = [spool.put(b"a" * 100), spool.put(b"b" * 100)]
    first, second = files(tmp_path)
    data = bytearray(first.read_bytes())
    if damage == "flip":
        data[7] ^= 1
        first.write_bytes(data)
    elif damage == "cut":
        first.write_bytes(data[:-1])
    elif damage == "swap":
        first.write_bytes(second.read_bytes())
    else:
        first.unlink()
    assert spool.take(numbers[0]) is None
    assert len(reasons) == 1
    assert spool.take(numbers[1]) == b"b" * 100
    assert spool.used == 0
    assert files(tmp_path) == []


def test_two_dealers_do_not_share_a_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10_000)
    number = spool.put(b"kept")
    with pytest.raises(ConfigError, match="no other dealer"):
        Spool(tmp_path, 10_000)
    assert spool.take(number) == b"kept"
    spool.close()
    Spool(tmp_path, 10_000).close()


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="write"):
        Spool(tmp_path / "file", 10_000)


def test_a_full_disk_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = []
    spool = Spool(tmp_path, 10_000, reasons.append)
    kept = spool.put(b"before")

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "open", full)
        assert spool.put(b"lost") is None
    assert spool.failing
    assert reasons == ["No space left on device"]
    assert spool.used == len(b"before") + TAG_BYTES
    assert spool.put(b"not tried") is None
    assert len(reasons) == 1
    assert spool.take(kept) == b"before"
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    number = spool.put(b"after")
    assert number is not None
    assert spool.take(number) == b"after"


def test_half_a_file_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, real = Spool(tmp_path, 10_000), os.fdopen

    class Broken:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> "Broken":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: memoryview) -> int:
            self.file.write(data[:3])
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.os, "fdopen", lambda *a, **k: Broken(real(*a, **k)))
    assert spool.put(b"item") is None
    assert files(tmp_path) == []
