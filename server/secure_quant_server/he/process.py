"""The front's handle on one evaluation process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Sequence

import grpc

from secure_quant.errors import InternalError
from secure_quant.wire import from_status
from secure_quant.wire.rpc_status import METADATA_KEY
from secure_quant_server.he.frames import COUNT, LENGTH, OK, REPLY, REQUEST, SOCKET_BUFFER

__all__ = ["WorkerProcess"]

START_LIMIT_S = 120.0
# Processes are the parallelism; threads below them would only fight for the same cores.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class WorkerProcess:
    """One process and this end of its socket pair; one exchange at a time."""

    def __init__(self, module: str = "secure_quant_server.he.worker") -> None:
        self._module = module
        self._link, self._theirs = socket.socketpair()
        for end in (self._link, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self._link.setblocking(False)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Of the process; 0 before it is started."""
        return self._process.pid if self._process else 0

    async def start(self, bundles: Sequence[bytes]) -> list[bytes]:
        """Spawn and load; the serialized ModelInfo of each bundle. Raises what loading raised, or
        InternalError."""
        fd = self._theirs.fileno()
        # -P: modules come from the installation, never from the directory one happens to be in.
        command = (sys.executable, "-P", "-m", self._module, str(fd))
        self._process = await asyncio.create_subprocess_exec(
            *command,
            pass_fds=(fd,),
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD},
        )
        self._theirs.close()
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await self._send(COUNT.pack(len(bundles)))
                infos = []
                for bundle in bundles:
                    await self._send(LENGTH.pack(len(bundle)))
                    await self._send(bundle)
                    infos.append(await self._answer())
                return infos
        except (OSError, EOFError, TimeoutError) as error:
            raise InternalError("a worker ended while it loaded the models") from error

    async def evaluate(self, model: int, step: int, batch: int, ciphertexts: bytes) -> bytes:
        """Raises the worker's named error; OSError or EOFError if the process is gone."""
        head = REQUEST.pack(model, step, batch, len(ciphertexts))
        await self._send(head + ciphertexts)
        return await self._answer()

    async def end(self) -> int | None:
        """Kill the process if it still runs; its exit status."""
        self._link.close()
        self._theirs.close()
        if self._process is None:
            return None
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        return await self._process.wait()

    async def _answer(self) -> bytes:
        kind, length = REPLY.unpack(await self._receive(REPLY.size))
        body = bytes(await self._receive(length))
        if kind != OK:
            raise from_status(grpc.StatusCode.INTERNAL, None, ((METADATA_KEY, body),))
        return body

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._link, data)

    async def _receive(self, length: int) -> memoryview:
        view, got = memoryview(bytearray(length)), 0
        while got < length:
            more = await asyncio.get_running_loop().sock_recv_into(self._link, view[got:])
            if more == 0:
                raise EOFError
            got += more
        return view
