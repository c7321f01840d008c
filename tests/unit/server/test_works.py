"""What the dealer makes ahead, where it lies, and that nothing of it is handed out twice."""

import asyncio
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from clock import run
from prometheus_client import generate_latest
from unit.mpc.protocol import graphs

from secure_quant.keystream import Keystream
from secure_quant.mpc.protocol.bundle import load_dealer, split
from secure_quant_server.common import Metrics
from secure_quant_server.mpc.works import Gauges, Works

PROGRAM = load_dealer(split(graphs.mlp())["dealer"])
SIZE = 8 * PROGRAM.plan.dealt_words + 64


@asynccontextmanager
async def works(
    folder: Path | None, items: float, spooled: int, workers: int = 1
) -> AsyncIterator[tuple[Works, Metrics]]:
    metrics = Metrics()
    gauges = Gauges(metrics)
    limit = spooled * (SIZE + 16)
    spool = gauges.open_spool(folder, limit) if folder else None
    with ThreadPoolExecutor(workers) as pool:
        made = Works(PROGRAM, int(items * SIZE), gauges, pool, spool, limit)
        makers = [asyncio.create_task(made.make()) for _ in range(workers)]
        yield made, metrics
        for maker in makers:
            maker.cancel()
        await asyncio.gather(*makers, return_exceptions=True)
    if spool is not None:
        spool.close()


def figure(metrics: Metrics, name: str) -> float:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if re.split("[{ ]", line)[0] == name
    )


async def until(metrics: Metrics, **figures: float) -> None:
    async with asyncio.timeout(20):
        while any(figure(metrics, f"secure_quant_dealer_{k}") != v for k, v in figures.items()):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 3])
def test_memory_first_then_disk_and_no_item_twice(tmp_path: Path, workers: int) -> None:
    async def work() -> None:
        async with works(tmp_path, 6, 9, workers) as (made, metrics):
            await until(metrics, stock=6, spooled=9)
            assert len(list(tmp_path.glob("*.item"))) == 9
            seeds = set()
            for _ in range(40):
                item = await made.take()
                assert item.seed0 not in seeds
                assert item.seed1 not in seeds
                seeds |= {item.seed0, item.seed1}
                expected = PROGRAM.correct(Keystream(item.seed0), Keystream(item.seed1))
                assert bytes(item.corrections) == expected.astype("<u8").tobytes()
            await until(metrics, stock=6, spooled=9)
            assert figure(metrics, "secure_quant_dealer_items_total") == 40
        assert list(tmp_path.glob("*.item")) == []

    run(work())


def test_without_a_spool_memory_is_all(tmp_path: Path) -> None:
    async def work() -> None:
        async with works(None, 5, 0) as (made, metrics):
            await until(metrics, stock=5)
            await asyncio.sleep(0.05)
            assert figure(metrics, "secure_quant_dealer_item_seconds_count") == 5
            assert len({(await made.take()).seed0 for _ in range(12)}) == 12

    run(work())


def test_memory_holds_what_fits_and_one_item_at_least() -> None:
    async def work() -> None:
        for items, held in ((3.9, 3), (1, 1), (0.5, 1)):
            async with works(None, items, 0) as (made, metrics):
                await until(metrics, stock=held)
                await asyncio.sleep(0.05)
                assert figure(metrics, "secure_quant_dealer_item_seconds_count") == held
                assert len({(await made.take()).seed0 for _ in range(5)}) == 5

    run(work())


def test_a_disk_that_loses_everything_costs_only_what_was_on_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with works(tmp_path, 4, 6) as (made, metrics):
            await until(metrics, stock=4, spooled=6)
            for path in tmp_path.glob("*.item"):
                path.write_bytes(b"rubbish")
            seeds = {(await made.take()).seed0 for _ in range(20)}
            assert len(seeds) == 20
            assert figure(metrics, "secure_quant_dealer_spool_failures_total") == 6

    run(work())


def test_a_disk_that_refuses_leaves_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_quant_server.mpc.spool import Spool

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "_write", full)

    async def work() -> None:
        async with works(tmp_path, 4, 6) as (made, metrics):
            await until(metrics, stock=4, spool_failing=1)
            assert len({(await made.take()).seed0 for _ in range(20)}) == 20
            await until(metrics, stock=4, spooled=0)
            assert figure(metrics, "secure_quant_dealer_spool_failures_total") == 1

    run(work())
