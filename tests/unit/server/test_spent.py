"""The ledger of samples: ahead of what is served, across restarts, for one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secure_quant.errors import BudgetExceeded, ConfigError, PeerUnavailable
from secure_quant_server.onehost import spent as module
from secure_quant_server.onehost.spent import RESERVED, Spent


def stored(path: Path) -> dict[str, int]:
    return json.loads(path.read_text())["spent"]


def test_a_client_gets_so_many_of_a_model_and_no_more() -> None:
    ledger = Spent()
    ledger.charge("a", "m", 3, 5)
    with pytest.raises(BudgetExceeded, match="<= 2 of 5"):
        ledger.charge("a", "m", 3, 5)
    ledger.charge("a", "m", 2, 5)  # what was refused was not counted
    with pytest.raises(BudgetExceeded):
        ledger.charge("a", "m", 1, 5)
    ledger.charge("b", "m", 5, 5)
    ledger.charge("a", "other", 5, 5)


def test_it_is_written_down_before_it_is_served(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = Spent(path)
    ledger.charge("a", "m", 2, 10_000)
    assert stored(path) == {"m a": 2 + RESERVED}
    ledger.charge("a", "m", RESERVED, 10_000)
    assert stored(path) == {"m a": 2 + RESERVED}
    ledger.charge("a", "m", 1, 10_000)
    assert stored(path) == {"m a": 3 + 2 * RESERVED}


def test_a_crash_takes_what_was_reserved_a_stop_does_not(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    crashed = Spent(path)
    crashed.charge("a", "m", 1, 400)
    crashed._held.close()  # as the system does when a process ends
    ledger = Spent(path)
    with pytest.raises(BudgetExceeded, match="of 400"):
        ledger.charge("a", "m", 400 - RESERVED, 400)
    ledger.charge("a", "m", 400 - RESERVED - 1, 400)
    ledger.close()
    assert stored(path) == {"m a": 400}
    after = Spent(tmp_path / "other.json")
    after.charge("a", "m", 7, 400)
    after.close()
    assert stored(tmp_path / "other.json") == {"m a": 7}


def test_nothing_is_served_that_cannot_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients are told so and no more, the operator why."""
    ledger = Spent(tmp_path / "ledger.json")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(PeerUnavailable, match="ledger") as told, caplog.at_level("INFO"):
        ledger.charge("a", "m", 1, 10)
    assert str(tmp_path) not in str(told.value)
    (said,) = [each for each in caplog.records if each.getMessage() == "ledger not written"]
    assert (said.levelname, "No space" in said.fields["reason"]) == ("ERROR", True)
    with pytest.raises(ConfigError, match="No space"):
        Spent(tmp_path / "other.json")
    monkeypatch.undo()
    ledger.charge("a", "m", 10, 10)
    with pytest.raises(BudgetExceeded):
        ledger.charge("a", "m", 1, 10)


def test_one_process_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = Spent(path)
    with pytest.raises(ConfigError, match="another process"):
        Spent(path)
    ledger.close()
    Spent(path).close()


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"version": 2, "spent": {}}', '{"version": 1}', '{"version": 1, "spent": []}',
    '{"version": 1, "spent": {"m a": -1}}', '{"version": 1, "spent": {"m a": true}}',
    '{"version": 1, "spent": {"m a": 1.5}}',
])  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="ledger"):
        Spent(path)
    path.unlink()
    Spent(path).close()  # the lock was given back


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ledger"):
        Spent(tmp_path / "none" / "ledger.json")
