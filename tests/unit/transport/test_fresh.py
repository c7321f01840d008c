"""Certificates and tokens that are replaced while a role runs."""

import asyncio
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from patience import ample
from unit.server.support import calling, run, serving

from secure_quant.errors import CertificateMismatch, PeerUnavailable, Unauthenticated
from secure_quant.transport import (
    FrameStream,
    FreshCredentials,
    ServerPair,
    SwappedTls,
    Tls,
    dial_stream,
    expiry,
    listen_stream,
    warn_of_expiry,
)
from secure_quant.transport.certs import Authority
from secure_quant.wire import raised
from secure_quant.wire.gen.secure_inference_pb2 import GetModelRequest
from secure_quant_server.common import Tokens, make_token


def write(folder: Path, authority: Authority, role: str, *, only: str = "") -> Tls:
    """Replace the files, as a rotation does: each at once, under its name."""
    cert, key = authority.issue(role, hosts=["localhost", "127.0.0.1"])
    for name, data in {"ca": authority.pem, "cert": cert, "key": key}.items():
        if only in ("", name):
            part = folder / f"{name}.part"
            part.write_bytes(data)
            part.replace(folder / name)
    return Tls(folder / "ca", folder / "cert", folder / "key")


def test_a_pair_for_browsers_is_replaced_as_well(tmp_path: Path) -> None:
    """Of another authority each time, as a public one's renewals may be; none is asked for."""
    first, second = Authority(days=20), Authority(days=90)
    write(tmp_path, first, "party0")
    fresh = FreshCredentials(ServerPair(tmp_path / "cert", tmp_path / "key"))
    assert fresh.look() is None
    assert fresh.current.ca == b""
    assert abs(expiry(fresh.current) - datetime.now(UTC) - timedelta(days=20)) < timedelta(hours=1)
    write(tmp_path, second, "party0", only="cert")  # half of a rotation
    assert fresh.look() is None
    write(tmp_path, second, "party0")
    found = fresh.look()
    assert found is not None
    assert abs(expiry(found) - datetime.now(UTC) - timedelta(days=90)) < timedelta(hours=1)


def client(authority: Authority) -> Tls:
    return Tls(authority.pem, *authority.issue("client/alice"))


async def answered(server: object, security: Tls) -> bool:
    """Over a connection of its own."""
    async with calling(server, security) as (stub, _):
        try:
            await stub.GetModel(GetModelRequest(), timeout=ample(5))
        except grpc.RpcError as error:
            said = raised(error)
        else:
            return True
    assert type(said) is PeerUnavailable
    return False


def test_a_server_takes_new_files_for_new_connections(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Authority(), Authority()

    async def test() -> None:
        async with (
            serving(security=write(tmp_path, old, "he")) as server,
            calling(server, client(old)) as (before, _),
        ):
            await before.GetModel(GetModelRequest(), timeout=ample(5))
            write(tmp_path, new, "he", only="key")  # a rotation that is half done
            assert await answered(server, client(old))
            write(tmp_path, new, "party0")  # another role's
            assert await answered(server, client(old))
            assert not await answered(server, client(new))
            write(tmp_path, new, "he")
            assert await answered(server, client(new))
            assert not await answered(server, client(old))
            await before.GetModel(GetModelRequest(), timeout=ample(5))  # its connection goes on

    with caplog.at_level(logging.INFO, "secure_quant"):
        run(test)
    said = [r.getMessage() for r in caplog.records if "certificates" in r.getMessage()]
    assert said == ["certificates not taken", "certificates not taken", "certificates taken"]


def test_frames_take_new_files_for_new_connections(tmp_path: Path) -> None:
    old, new = Authority(), Authority()

    async def echo(stream: FrameStream) -> None:
        stream.write(await stream.read())
        await stream.drain()
        await asyncio.sleep(0.05)

    async def reached(port: int, authority: Authority) -> bool:
        own = Tls(authority.pem, *authority.issue("party0"))
        try:
            async with dial_stream(f"127.0.0.1:{port}", own, server_role="party1") as stream:
                stream.write(b"x")
                return await stream.read() == b"x"
        except PeerUnavailable:
            return False

    async def test() -> None:
        security = write(tmp_path, old, "party1")
        swapped = SwappedTls(security)
        listening = listen_stream("127.0.0.1:0", security, caller_role="party0", serve=echo)
        second = listen_stream("127.0.0.1:0", swapped, caller_role="party0", serve=echo)
        async with listening as port, second as other:
            assert await reached(port, old)
            assert not await reached(port, new)
            write(tmp_path, new, "party1", only="cert")
            assert await reached(port, old)
            write(tmp_path, new, "party1")
            assert await reached(port, new)
            assert not await reached(port, old)
            # Where another process hands the bytes over, they count once it does.
            assert await reached(other, old)
            swapped.swap(security)
            assert await reached(other, new)
            assert not await reached(other, old)

    run(test)


def test_what_does_not_fit_is_not_swapped_in(tmp_path: Path) -> None:
    authority = Authority()
    swapped = SwappedTls(write(tmp_path, authority, "party1"))
    before = swapped.load()
    write(tmp_path, authority, "party1", only="key")
    with pytest.raises(CertificateMismatch):
        swapped.swap(Tls(tmp_path / "ca", tmp_path / "cert", tmp_path / "key"))
    assert swapped.load() == before


def test_the_end_of_a_certificate_is_said_days_ahead(caplog: pytest.LogCaptureFixture) -> None:
    authority, now = Authority(days=400), datetime.now(UTC)
    until = now + timedelta(days=40)
    found = Tls(authority.pem, *authority.issue("he", until=until)).load()
    assert abs(expiry(found) - until) < timedelta(seconds=2)
    with caplog.at_level(logging.WARNING, "secure_quant"):
        assert 39 < warn_of_expiry(found, 30) <= 40
        assert not caplog.records
        warn_of_expiry(found, 30, lambda: now + timedelta(days=15))
        (record,) = caplog.records
    assert record.getMessage() == "certificate ends"
    assert 24 < record.fields["days_left"] < 26


def test_credentials_look_again_only_when_a_file_changed(tmp_path: Path) -> None:
    fresh = FreshCredentials(write(tmp_path, Authority(), "he"))
    assert fresh.look() is None
    os.utime(tmp_path / "cert", ns=(1, 1))
    assert fresh.look() is None  # the same content
    write(tmp_path, Authority(), "he")
    assert fresh.look() == fresh.current
    assert fresh.look() is None


def test_tokens_follow_their_file(tmp_path: Path) -> None:
    (first, one), (second, two) = make_token("ann"), make_token("bob")
    path = tmp_path / "tokens"
    path.write_text(one + "\n")
    tokens = Tokens.from_file(path)
    assert tokens.name(first) == "ann"
    path.write_text(two + "\n" + "nonsense\n")
    assert tokens.name(first) == "ann"  # a file that cannot be read changes nothing
    path.write_text(two + "\n")
    assert tokens.name(second) == "bob"
    with pytest.raises(Unauthenticated):
        tokens.name(first)
    path.unlink()
    assert tokens.name(second) == "bob"
