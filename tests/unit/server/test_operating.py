"""What an operator counts on: the right certificate, bounded metrics, a log that stays short."""

import http.client
import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from patience import ample
from unit.server.support import calling, run, serving, tls
from unit.server.test_guard import error_of, request

from secure_quant.errors import CertificateMismatch, ConfigError, MalformedMessage, PeerUnavailable
from secure_quant.transport import InsecurePlaintext, Tls, own_role, require_role
from secure_quant.transport.certs import Authority
from secure_quant_client import HeClient
from secure_quant_server.common import Access, GrpcServer, Metrics, ServerOptions
from secure_quant_server.common.metrics import AT_ONCE


def test_a_role_does_not_start_with_the_certificate_of_another() -> None:
    async def test() -> None:
        options = ServerOptions(listen="127.0.0.1:0", security=tls("party0"))
        for role in ("party1", "he", "dealer", "client"):
            with pytest.raises(CertificateMismatch, match="party0.*" + role):
                GrpcServer(options, Access({}), [], role=role)
        GrpcServer(options, Access({}), [], role="party0")

    run(test)


def test_one_s_own_role_is_read_from_the_certificate() -> None:
    assert str(own_role(tls("client/alice").load())) == "client/alice"
    require_role(InsecurePlaintext(), "he")
    authority = Authority()
    foreign = Tls(authority.pem, authority.pem, authority.key_pem)
    with pytest.raises(CertificateMismatch, match="one role"):
        require_role(foreign, "he")


def test_metrics_listen_on_loopback_unless_told_otherwise() -> None:
    for address in ("0", ":0", "127.0.0.1:0"):
        server = Metrics().listen(address)
        assert server.server_address[0] == "127.0.0.1"
        server.shutdown()
        server.server_close()
    for wrong in ("x", "127.0.0.1:99999", "256.0.0.1:1"):
        with pytest.raises(ConfigError, match="metrics"):
            Metrics().listen(wrong)


def test_connections_that_say_nothing_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secure_quant_server.common.metrics.LONGEST_S", 1.0)
    server = Metrics().listen("0")
    port = server.server_address[1]
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3 * AT_ONCE)]
    # Those above the bound are closed at once, the others when their time is over.
    deadline = time.monotonic() + ample(20)
    for each in idle:
        each.settimeout(max(0.1, deadline - time.monotonic()))
        with suppress(ConnectionResetError):
            assert each.recv(1) == b""
        each.close()
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ample(5))
        try:
            connection.request("GET", "/metrics")
            assert b"secure_quant_calls" in connection.getresponse().read()
            break
        except (ConnectionError, http.client.HTTPException):
            assert time.monotonic() < deadline
        finally:
            connection.close()
    server.shutdown()
    server.server_close()


def test_a_client_that_tries_again_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving() as server, calling(server) as (stub, _):
            for _ in range(40):
                await error_of(stub.EvaluateLinear(request(batch=0), timeout=ample(5)))

    with caplog.at_level(logging.INFO, "secure_quant"):
        run(test)
    said = [r.fields for r in caplog.records if r.getMessage() == "call"]
    refused = [each for each in said if each["code"] == "INVALID_ARGUMENT"]
    assert 1 <= len(refused) <= 10
    assert json.dumps(refused)


def test_a_proxy_of_the_environment_is_not_used_and_is_named(
    monkeypatch: pytest.MonkeyPatch, unused_port: Callable[[], int]
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    async def test() -> None:
        plain = InsecurePlaintext()
        async with serving(security=plain) as server, calling(server, plain) as (stub, _):
            error = await error_of(stub.EvaluateLinear(request(batch=0), timeout=ample(5)))
            assert type(error) is MalformedMessage  # it came through

    run(test)
    client = HeClient(f"127.0.0.1:{unused_port()}", tls=InsecurePlaintext())
    with client, pytest.raises(PeerUnavailable, match="https_proxy is set, and is not used"):
        client.infer([[1.0]])
