"""Budgets that several processes share, in a real Redis: the same bucket as in one process, and
what happens without it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

redis = pytest.importorskip("redis")
pytest.importorskip("prometheus_client")

from e2e.redis_server import BINARY, PASSWORD, RedisServer  # noqa: E402
from patience import ample  # noqa: E402

from secure_quant.errors import BudgetExceeded, PeerUnavailable  # noqa: E402
from secure_quant.transport.certs import make_all  # noqa: E402
from secure_quant_cli import diagnosis  # noqa: E402
from secure_quant_server.common import Budgets, Metrics, shared_budgets  # noqa: E402
from secure_quant_server.common.shared_budgets import SharedBudgets  # noqa: E402

pytestmark = pytest.mark.skipif(BINARY is None, reason="no redis-server here")

LONG_S = 1e6


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_budgets, "PAUSE_S", 0.1)
    monkeypatch.setattr(shared_budgets, "ANSWER_S", ample(shared_budgets.ANSWER_S))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as started:
        yield started


@asynccontextmanager
async def replica(store: RedisServer, samples: int = 10, **options: Any) -> Any:
    chosen = {"alone": False, "role": "he", "metrics": Metrics(), "window_s": LONG_S} | options
    made = SharedBudgets(samples, store=store.file, **chosen)
    try:
        yield made
    finally:
        await made.close()


async def outcome(call: Awaitable[None]) -> str:
    try:
        await call
    except (BudgetExceeded, PeerUnavailable) as error:
        return type(error).__name__
    return "paid"


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(ample(30)):
            await work()

    asyncio.run(bounded())


def test_replicas_take_from_one_bucket_at_once(store: RedisServer) -> None:
    async def work() -> None:
        async with replica(store, 40) as one, replica(store, 40) as two:
            calls = [outcome(each.pay("alice", "m", 3)) for each in (one, two) for _ in range(20)]
            found = await asyncio.gather(*calls)
            assert found.count("paid") == 13  # 39 of 40
            assert found.count("BudgetExceeded") == 27
            await one.pay("alice", "m", 1)
            with pytest.raises(BudgetExceeded, match="got 1 samples, expected <= 0 now, 40 in"):
                await two.pay("alice", "m", 1)
            await two.pay("bob", "m", 40)
            await two.pay("alice", "other", 40)
        async with replica(store, 40, role="party0") as other:
            await other.pay("alice", "m", 40)

    run(work)


def test_a_bucket_is_the_one_of_a_single_process(
    store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same payments at the same times, Redis's clock replaced in the script."""
    times = [0.0, 0.0, 1.0, 1.5, 1.5, 9.0, 9.25, 40.0, 40.0, 39.0, 41.0]
    amounts = [70, 31, 10, 14, 1, 81, 3, 100, 1, 1, 11]
    now = [0.0]
    real = "local now = tonumber(at[1]) + tonumber(at[2]) / 1e6"
    assert real in shared_budgets._TAKE
    monkeypatch.setattr(
        shared_budgets, "_TAKE",
        shared_budgets._TAKE.replace(real, "local now = tonumber(ARGV[4])"),
    )  # fmt: skip

    async def work() -> None:
        local = Budgets(100, 10, clock=lambda: max(now))
        async with replica(store, 100, window_s=10.0) as shared:
            evaluate = shared._client.eval
            shared._client.eval = lambda *given: evaluate(*given, repr(max(now)))
            for at, amount in zip(times, amounts, strict=True):
                now.append(at)
                here = await outcome(local.pay("a", "m", amount))
                assert await outcome(shared.pay("a", "m", amount)) == here, (at, amount)

    run(work)


def test_buckets_are_forgotten_once_they_are_full(store: RedisServer) -> None:
    async def work() -> None:
        async with replica(store, 5, window_s=0.2) as budgets:
            begun, second = -1.0, ""
            while time.monotonic() - begun > 0.2:  # it may have filled meanwhile: no answer
                await asyncio.sleep(0.3)
                begun = time.monotonic()
                await budgets.pay("a", "m", 5)
                second = await outcome(budgets.pay("a", "m", 5))
            assert second == "BudgetExceeded"
            await asyncio.sleep(0.3)
            await budgets.pay("a", "m", 5)

    run(work)


@pytest.mark.parametrize("alone", [False, True])
def test_while_the_store_is_away(
    store: RedisServer, alone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = [Metrics(), Metrics()]

    def up() -> list[float | None]:
        return [each.registry.get_sample_value("secure_quant_budget_store_up") for each in metrics]

    async def work() -> None:
        async with (
            replica(store, 4, alone=alone, metrics=metrics[0]) as one,
            replica(store, 4, alone=alone, metrics=metrics[1]) as two,
        ):
            await one.pay("a", "m", 3)
            assert up() == [1, 1]
            store.kill()
            found = [await outcome(each.pay("a", "m", 1)) for each in (one, two) for _ in range(5)]
            # Each counts alone from a full bucket of its own, or none serves.
            one_s = ["paid"] * 4 + ["BudgetExceeded"] if alone else ["PeerUnavailable"] * 5
            assert found == one_s * 2
            assert up() == [0, 0]
            with store:  # what was spent before is still spent
                end = time.monotonic() + ample(20)
                while up() != [1, 1]:
                    assert time.monotonic() < end
                    for each in (one, two):  # more than any bucket holds
                        assert await outcome(each.pay("a", "m", 5)) != "paid"
                assert await outcome(two.pay("a", "m", 2)) == "BudgetExceeded"
                assert await outcome(one.pay("a", "m", 1)) == "paid"
                assert await outcome(two.pay("a", "m", 1)) == "BudgetExceeded"
                assert up() == [1, 1]

    with caplog.at_level(logging.DEBUG):
        run(work)
    said = [record for record in caplog.records if record.message == "budget store away"]
    assert len(said) == 2  # once a process
    assert _leaks(caplog) == []


def test_a_store_that_hangs_is_away(store: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with replica(store) as budgets:
            await budgets.pay("a", "m", 1)
            monkeypatch.setattr(shared_budgets, "ANSWER_S", 0.5)
            os.kill(store.process.pid, signal.SIGSTOP)
            try:
                calls = [outcome(budgets.pay("a", "m", 1)) for _ in range(50)]
                assert set(await asyncio.gather(*calls)) == {"PeerUnavailable"}
                assert await outcome(budgets.pay("a", "m", 1)) == "PeerUnavailable"
                await asyncio.sleep(shared_budgets.PAUSE_S)
                asked: list[object] = []
                evaluate = budgets._client.eval
                budgets._client.eval = lambda *given: asked.append(given) or evaluate(*given)
                calls = [outcome(budgets.pay("a", "m", 1)) for _ in range(50)]
                assert set(await asyncio.gather(*calls)) == {"PeerUnavailable"}
                assert len(asked) == 1  # and the others did not wait for it
            finally:
                os.kill(store.process.pid, signal.SIGCONT)

    run(work)


def test_over_tls_and_to_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_all(tmp_path / "certs")
    make_all(tmp_path / "other")

    async def work() -> None:
        async with replica(store) as budgets:
            await budgets.pay("a", "m", 10)
            assert await outcome(budgets.pay("a", "m", 1)) == "BudgetExceeded"
            # A file that is replaced counts from the next call on, and one that is wrong does not.
            good = store.file.read_text()
            store.file.write_text(good.replace("rediss:", "http:"))
            assert await outcome(budgets.pay("a", "m", 1)) == "BudgetExceeded"
            store.file.write_text(good.replace(str(tmp_path / "certs"), str(tmp_path / "other")))
            assert await outcome(budgets.pay("a", "m", 1)) == "PeerUnavailable"
            store.file.write_text(good.replace("Marker5", "Marker5wrong"))
            assert await outcome(budgets.pay("a", "m", 1)) == "PeerUnavailable"
            store.file.write_text(good + "\n")
            assert await outcome(budgets.pay("a", "m", 1)) == "BudgetExceeded"

    with caplog.at_level(logging.DEBUG), RedisServer(tmp_path / "r", tmp_path / "certs") as store:
        run(work)
    assert _leaks(caplog) == []
    reasons = [r.fields["reason"] for r in caplog.records if r.message == "budget store away"]
    assert any("SSLCertVerificationError" in each for each in reasons), reasons


def test_doctor_charges_it(store: RedisServer, tmp_path: Path) -> None:
    def found(file: Path) -> tuple[str, str]:
        told = argparse.Namespace(budget_store=file)
        (finding,) = diagnosis._store(diagnosis._Role("he", told))
        return finding.state, finding.found

    assert found(store.file) == ("ok", "budgets can be charged")
    other = tmp_path / "other"
    other.write_text(store.url.replace("Marker5", "Marker6"))
    state, said = found(other)
    assert (state, "AuthenticationError" in said, "Marker" in said) == ("fail", True, False)
    other.write_text("redis://redis.example/0")
    assert found(other)[0] == "fail"
    store.kill()
    state, said = found(store.file)
    assert (state, "ConnectionRefusedError" in said) == ("fail", True)


def _leaks(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [
        json.dumps([record.getMessage(), getattr(record, "fields", {})], default=str)
        for record in caplog.records
    ]
    return [each for each in said if "Marker5" in each or PASSWORD in each]
