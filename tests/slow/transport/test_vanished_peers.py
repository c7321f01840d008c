"""A peer whose machine is gone says nothing, not even that it closes: the other end must notice.

A network of its own, which a process may have without being root, is taken down under a connection.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secure_quant.transport.certs import make_all

ALONE = ("unshare", "--user", "--map-root-user", "--net")
PATIENCE_S = 60.0

ENDS = """
import asyncio, fcntl, socket, struct, sys, uvloop
from secure_quant.errors import PeerUnavailable
from secure_quant.transport import Limits, Tls, dial_stream, listen_stream

SIOCSIFFLAGS, UP = 0x8914, 1
limits = Limits(keepalive_s=1.0, keepalive_grace_s=1.0)

def loopback(flags):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))

async def lost(stream):
    try:
        await stream.read()
    except PeerUnavailable as error:
        return str(error)

async def main(certs, state):
    loopback(UP)
    accepted = asyncio.get_running_loop().create_future()
    ended = asyncio.get_running_loop().create_future()

    async def serve(stream):
        stream.write(b"hello")
        accepted.set_result(stream)
        ended.set_result(await lost(stream))

    tls = [Tls.from_dir(certs, role) for role in ("party1", "party0")]
    listens = listen_stream("127.0.0.1:0", tls[0], caller_role="party0", serve=serve, limits=limits)
    async with listens as port:
        dials = dial_stream(f"127.0.0.1:{port}", tls[1], server_role="party1", limits=limits)
        async with dials as stream:
            assert await stream.read() == b"hello"
            await asyncio.sleep(3.0)  # alive: probes are answered
            assert not ended.done()
            loopback(0)
            if state == "sending":
                stream.write(b"into the void")
                (await accepted).write(b"into the void")
            print(await lost(stream), "|", await ended, flush=True)

{"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[2]](main(sys.argv[1], sys.argv[3]))
"""


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_all(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _networks() -> None:
    allowed = shutil.which("unshare") and subprocess.run([*ALONE, "true"], capture_output=True)
    if not allowed or allowed.returncode:
        pytest.skip("this system lets nobody have a network of its own")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("state", ["idle", "sending"])
def test_both_ends_of_a_link_notice(certs: Path, loop: str, state: str) -> None:
    """In three seconds here; in 25 by default."""
    command = [*ALONE, sys.executable, "-c", ENDS, str(certs), loop, state]
    found = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert found.returncode == 0, found.stderr
    ends = found.stdout.strip().split(" | ")
    assert len(ends) == 2, found.stdout
    assert all("closed the connection" in end for end in ends)
