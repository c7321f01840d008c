"""Options that name addresses, hosts and files."""

import argparse
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from secure_quant.errors import ConfigError, ValueOutOfRange
from secure_quant_cli.checks import (
    address,
    can_write,
    counts,
    durations,
    free_ports_at,
    host,
    model_hash,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.example:1", ("a.example", 1)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert address("--peer", text) == found


@pytest.mark.parametrize(
    "text",
    ["", "a", ":1", "a:", "a:0", "a:65536", "a:-1", "a:1x", "a b:1", "::1:80", "[::1]", "dns:///a:1",
     "[fe80::1%e]:1", "a:1\n", "a:٣"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--peer: got .*, expected HOST:PORT"):
        address("--peer", text)


def test_all_ports_of_a_run_must_exist() -> None:
    assert address("--peer", "a:65530", run=6) == ("a", 65530)
    with pytest.raises(ConfigError):
        address("--peer", "a:65530", run=7)
    assert address("--listen", "a:0", listen=True) == ("a", 0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_in_use_is_named(family: socket.AddressFamily) -> None:
    local = "127.0.0.1" if family == socket.AF_INET else "::1"
    with ExitStack() as stack:
        port, before = bound(stack, family, local)
        while before is None:  # somebody's
            port, before = bound(stack, family, local)
        before.close()
        shown = local if family == socket.AF_INET else f"[{local}]"
        with pytest.raises(ConfigError, match=f"--link-listen: got {local}:{port}: Address"):
            free_ports_at("--link-listen", f"{shown}:{port}", 1)
        with pytest.raises(ConfigError, match=str(port)):
            free_ports_at("--link-listen", f"{shown}:{port - 1}", 2)
    free_ports_at("--link-listen", f"{shown}:{port}", 1)
    free_ports_at("--link-listen", f"{shown}:0", 4)


def bound(
    stack: ExitStack, family: socket.AddressFamily, local: str
) -> tuple[int, socket.socket | None]:
    """A port that is listened on, and a socket at the one before it if that was free."""
    busy, before = (stack.enter_context(socket.socket(family)) for _ in range(2))
    try:
        busy.bind((local, 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    busy.listen()
    port = int(busy.getsockname()[1])
    try:
        before.bind((local, port - 1))
    except OSError:
        return port, None
    return port, before


def test_hosts() -> None:
    for good in ("a", "a.example", "*.example", "10.0.0.1", "::1", "xn--bcher-kva.example", "a_b"):
        assert host("--host", good) == good
    for bad in ("", "a b", "a/b", "ü.example", "a..b", "a" * 64, "*", "http://a", "-a.b"):
        with pytest.raises(ConfigError, match="--host"):
            host("--host", bad)


def test_files(tmp_path: Path) -> None:
    can_write("--out", tmp_path / "new")
    for bad in (tmp_path, tmp_path / "no" / "new", Path("/proc/self/status/new")):
        with pytest.raises(ConfigError, match="--out"):
            can_write("--out", bad)


def test_numbers_and_hashes() -> None:
    given = argparse.Namespace(lanes=1, wait_seconds=0.5, budget=None)
    counts(given, "lanes", "budget", "workers")
    durations(given, "wait_seconds", "budget")
    with pytest.raises(ValueOutOfRange, match="--lanes: got 0"):
        counts(argparse.Namespace(lanes=0), "lanes")
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueOutOfRange, match="--wait-seconds"):
            durations(argparse.Namespace(wait_seconds=bad), "wait_seconds")
    model_hash("--model-hash", None)
    model_hash("--model-hash", "0a" * 32)
    for text in ("", "0A" * 32, "0" * 63):
        with pytest.raises(ConfigError, match="--model-hash"):
            model_hash("--model-hash", text)
