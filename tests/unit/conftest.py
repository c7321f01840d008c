"""No test in here starts a process: those that must are in tests/slow, which mirrors it."""

import sys
from collections.abc import Iterator

import pytest

STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
COUNTS_CORES = "lscpu"  # joblib's, once a process, in whichever test needs it first
_started: list[str] = []


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if event in STARTS and COUNTS_CORES not in arguments:
        _started.append(f"{event} {arguments[0] if arguments else ''}")


sys.addaudithook(_listen)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    _started.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    made = yield
    if _started:
        pytest.fail(f"{_started[0]}: what starts a process belongs in tests/slow")
    return made
