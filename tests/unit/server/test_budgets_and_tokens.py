import hashlib
from pathlib import Path

import pytest

from secure_quant.errors import BudgetExceeded, ConfigError, InsecureRefused, Unauthenticated
from secure_quant.transport import InsecurePlaintext
from secure_quant_server.common import Budgets, Metrics, Tokens, budgets_of, make_token
from secure_quant_server.common.shared_budgets import store_url
from secure_quant_server.options import ServerOptions


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


@pytest.mark.parametrize(
    "url",
    [
        "rediss://replicas:word@redis.example:6379/0", "redis://127.0.0.1", "redis://[::1]:7/1",
        "rediss://h?ssl_ca_certs=/ca.pem&ssl_certfile=/a.pem&ssl_keyfile=/a.key",
        "redis://localhost:6379", "unix:///run/redis.sock?db=3",
    ],
)  # fmt: skip
def test_a_store_of_budgets_is_one_url(tmp_path: Path, url: str) -> None:
    file = tmp_path / "store"
    file.write_text(f"{url}\n")
    assert store_url(file) == url


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("redis://u:marker@10.0.0.1:6379", InsecureRefused),
        ("redis://u:marker@redis.example", InsecureRefused),
        ("rediss://u:marker@h:port/0", ConfigError), ("rediss://u:mar/ker@h", ConfigError),
        ("rediss://u:marker@h?ssl_cert_reqs=none", ConfigError),
        ("rediss://u:marker@h?ssl_check_hostname=false", ConfigError),
        ("https://u:marker@h", ConfigError), ("marker", ConfigError), ("", ConfigError),
        ("rediss://u:marker@h\nrediss://u:marker@i", ConfigError), ("rediss://", ConfigError),
        ("rediss://u:marker@[h", ConfigError), ("rediss://u:marker@h?x", ConfigError),
    ],
)  # fmt: skip
def test_a_store_of_budgets_is_over_tls_and_never_quoted(
    tmp_path: Path, url: str, error: type[Exception]
) -> None:
    file = tmp_path / "store"
    file.write_text(url)
    with pytest.raises(error) as caught:
        store_url(file)
    chain, told = caught.value, ""
    while chain is not None:
        told += repr(chain) * (chain.__suppress_context__ or chain is caught.value)
        chain = None if chain.__suppress_context__ else chain.__context__
    assert "mar" not in told.replace(str(tmp_path), "")


def test_a_store_without_a_budget_is_a_mistake(tmp_path: Path) -> None:
    options = ServerOptions(
        listen="127.0.0.1:0", security=InsecurePlaintext(), budget_store=tmp_path / "store"
    )
    with pytest.raises(ConfigError, match="budget_store: got no budget"):
        budgets_of(options, "he", Metrics())
