import hashlib
from pathlib import Path

import pytest

from secure_quant.errors import BudgetExceeded, ConfigError, Unauthenticated
from secure_quant_server.common import Budgets, Tokens, make_token


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_refills_evenly() -> None:
    clock = Clock()
    budgets = Budgets(100, window_s=10, clock=clock)
    budgets.charge("a", "m", 100)
    with pytest.raises(BudgetExceeded):
        budgets.charge("a", "m", 1)
    clock.now = 1.0  # a tenth of the window, a tenth of the budget
    with pytest.raises(BudgetExceeded):
        budgets.charge("a", "m", 11)
    budgets.charge("a", "m", 10)
    clock.now = 1000.0
    budgets.charge("a", "m", 100)  # never more than full
    with pytest.raises(BudgetExceeded):
        budgets.charge("a", "m", 1)


def test_a_refused_charge_takes_nothing() -> None:
    budgets = Budgets(10, clock=Clock())
    with pytest.raises(BudgetExceeded):
        budgets.charge("a", "m", 11)
    budgets.charge("a", "m", 10)


def test_clients_and_scopes_are_apart_and_none_means_no_limit() -> None:
    budgets = Budgets(1, clock=Clock())
    for client in "ab":
        for scope in ("m", ("m", 1)):
            budgets.charge(client, scope, 1)
    Budgets(None).charge("a", "m", 10**12)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budgets, "MAX_BUCKETS", 3)
    budgets = Budgets(1, clock=Clock())
    for client in "abcd":
        budgets.charge(client, "m", 1)
    assert len(budgets._buckets) == 3
    with pytest.raises(BudgetExceeded):
        budgets.charge("d", "m", 1)


def test_budgets_must_be_positive() -> None:
    for arguments in ((0, 1.0), (-1, 1.0), (1, 0.0)):
        with pytest.raises(ConfigError):
            Budgets(*arguments)


def test_the_file_holds_no_token(tmp_path: Path) -> None:
    token, line = make_token("alice")
    file = tmp_path / "tokens"
    file.write_text(f"# who may\n\n{line}\nbob {'0' * 64}\n")
    assert token not in file.read_text()
    assert line.split()[1] == hashlib.sha256(token.encode()).hexdigest()
    assert Tokens.from_file(file).name(token) == "alice"
    with pytest.raises(Unauthenticated):
        Tokens.from_file(file).name(token + "x")


@pytest.mark.parametrize("text", ["alice", "alice nothex", f"a {'0' * 64}\na {'1' * 64}", "\xff"])
def test_a_bad_file_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        Tokens.from_file(file)
    assert "nothex" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token file"):
        Tokens.from_file(tmp_path / "none")
