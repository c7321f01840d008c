"""Where a gateway listens, and with what."""

from __future__ import annotations

import asyncio
import ssl
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from patience import ample
from unit.client.gateway.asking import GRAPH, answered, asking, equal, given, ran
from unit.client.gateway.house import behind, gateway
from unit.server.support import AUTHORITY, tls

from plain_insecure import ENGINE
from secure_quant.errors import (
    CertificateMismatch,
    CertificateMissing,
    ConfigError,
    InsecureRefused,
)
from secure_quant.wire.gen.open_inference_pb2_grpc import GRPCInferenceServiceStub
from secure_quant_client.gateway import listen
from secure_quant_client.gateway.listen import ListenTls
from secure_quant_client.gateway.options import GatewayOptions
from secure_quant_client.gateway.serve import Gateway

Code = grpc.StatusCode


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:8000", "example.org:80", "10.0.0.1:1"]
)
@pytest.mark.parametrize("setting", ["listen", "http_listen"])
def test_beyond_loopback_it_listens_over_tls_alone(setting: str, address: str) -> None:
    options = {"engine": ENGINE.name, "targets": ["h:1"], "security": tls("client")}
    with pytest.raises(InsecureRefused, match=f"{setting}: got .*expected an address of loopback"):
        Gateway(GatewayOptions(**options, **{setting: address}))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"engine": "he-leveled"}, "exact"),
        ({"listen": None}, "neither"),
        ({"models": {}}, "a name at least"),
        ({"at_once": 0}, "at_once"),
        ({"batch": 0}, "batch"),
        ({"listen": "nowhere"}, "HOST:PORT"),
        ({"listen": "h:99999"}, "HOST:PORT"),
    ],
)
def test_options_that_make_no_gateway(change: dict[str, Any], error: str) -> None:
    told = {"engine": ENGINE.name, "targets": ["h:1"], "security": tls("client"),
            "listen": "127.0.0.1:0"}  # fmt: skip
    with pytest.raises(ConfigError, match=error):
        Gateway(GatewayOptions(**(told | change)))


@pytest.fixture
def files(tmp_path: Path) -> ListenTls:
    return written(tmp_path, "he")


def written(folder: Path, role: str) -> ListenTls:
    cert, key = AUTHORITY.issue(role, hosts=["localhost", "127.0.0.1"])
    (folder / "cert.pem").write_bytes(cert)
    (folder / "key.pem").write_bytes(key)
    (folder / "ca.pem").write_bytes(AUTHORITY.pem)
    return ListenTls(folder / "cert.pem", folder / "key.pem")


@pytest.mark.parametrize("mutual", [False, True])
def test_over_tls(files: ListenTls, mutual: bool, tmp_path: Path) -> None:
    caller = AUTHORITY.issue("client")
    told = ListenTls(files.cert, files.key, tmp_path / "ca.pem" if mutual else None)

    async def asked(port: int, credentials: grpc.ChannelCredentials) -> Any:
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            return await GRPCInferenceServiceStub(channel).ModelInfer(
                asking(given()), timeout=ample(10)
            )

    async def test() -> None:
        options = {"listen": "0.0.0.0:0", "listen_tls": told}
        async with behind(GRAPH) as server, gateway(server.target, **options) as started:
            shown = grpc.ssl_channel_credentials(AUTHORITY.pem, caller[1], caller[0])
            equal(answered(await asked(started.port, shown)), given())
            bare = grpc.ssl_channel_credentials(AUTHORITY.pem)
            if not mutual:
                equal(answered(await asked(started.port, bare)), given())
            else:
                with pytest.raises(grpc.aio.AioRpcError) as found:
                    await asked(started.port, bare)
                assert found.value.code() is Code.UNAVAILABLE
            written(tmp_path, "onehost")  # replaced while it runs
            equal(answered(await asked(started.port, shown)), given())

    ran(test)


def test_https(files: ListenTls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(listen, "LOOK_S", 0.05)

    def shown(port: int, role: str) -> bool:
        """The certificate there, if it names ``role`` and this machine."""
        context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
        context.check_hostname = False
        connection = HTTPSConnection("127.0.0.1", port, timeout=ample(10), context=context)
        connection.request("GET", "/v2/health/live")
        names = dict(connection.sock.getpeercert())["subjectAltName"]
        connection.close()
        return f"{role}.secure-quant.internal" in str(names)

    async def test() -> None:
        options = {"listen": None, "http_listen": "0.0.0.0:0", "listen_tls": files}
        async with behind(GRAPH) as server, gateway(server.target, **options) as started:
            assert await asyncio.to_thread(shown, started.http_port, "he")
            written(tmp_path, "onehost")  # replaced while it runs
            while not await asyncio.to_thread(shown, started.http_port, "onehost"):
                await asyncio.sleep(0.05)

    ran(test)


def test_files_that_are_no_pair_are_refused(files: ListenTls, tmp_path: Path) -> None:
    files.load()
    with pytest.raises(CertificateMissing):
        ListenTls(files.cert, tmp_path / "absent.key").load()
    files.key.write_bytes(AUTHORITY.issue("he")[1])
    with pytest.raises(CertificateMismatch):
        files.load()
