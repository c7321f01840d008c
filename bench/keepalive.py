"""At the real pace: a session idles for three minutes, a call runs for two, none is cut off.

    python bench/keepalive.py [--idle SECONDS] [--call SECONDS]

Prints one JSON object; exit status 1 if a connection was lost. The suite has the same in seconds
(tests/unit/server/test_keepalive.py).
"""

from __future__ import annotations

import asyncio
import json
import time

import grpc
import grpc.aio
from arguments import parser, run
from google.protobuf.wrappers_pb2 import DoubleValue

from secure_quant.transport import Tls, aio_channel
from secure_quant.transport.certs import Authority
from secure_quant_server.common import Access, GrpcServer, ServerOptions

SERVICE = "bench.Slow"
CLIENT = frozenset({"client"})


def _tls(authority: Authority, role: str) -> Tls:
    return Tls(authority.pem, *authority.issue(role, hosts=["127.0.0.1"]))


async def _measure(idle_s: float, call_s: float) -> dict[str, object]:
    async def slow(request: DoubleValue, context: object) -> DoubleValue:
        await asyncio.sleep(request.value)
        return request

    authority = Authority()
    options = ServerOptions(listen="127.0.0.1:0", security=_tls(authority, "he"))
    server = GrpcServer(options, Access({SERVICE: CLIENT}), [], role="he")
    write, read = DoubleValue.SerializeToString, DoubleValue.FromString
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(slow, read, write)}
    server.server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, handlers),)
    )
    target = f"127.0.0.1:{await server.start()}"
    channel = aio_channel(target, _tls(authority, "client/bench"), server_role="he")
    async with channel:
        call = channel.unary_unary(f"/{SERVICE}/Call", write, read)
        await call(DoubleValue(), timeout=5)
        ready = grpc.ChannelConnectivity.READY
        lost = asyncio.create_task(channel.wait_for_state_change(ready))
        start = time.monotonic()
        await asyncio.sleep(idle_s)
        await call(DoubleValue(), timeout=5)
        idled = not lost.done()
        asked = DoubleValue(value=call_s)
        ran = await call(asked, timeout=call_s + 10) == asked and not lost.done()
        lost.cancel()
    await server.stop()
    seconds = round(time.monotonic() - start, 1)
    return {"idle_s": idle_s, "idled": idled, "call_s": call_s, "ran": ran, "seconds": seconds}


def main() -> int:
    """Measure and print."""
    line = parser(__doc__)
    line.add_argument("--idle", type=float, default=180.0, metavar="SECONDS")
    line.add_argument("--call", type=float, default=120.0, metavar="SECONDS")
    arguments = line.parse_args()
    found = asyncio.run(_measure(arguments.idle, arguments.call))
    print(json.dumps(found))
    return 0 if found["idled"] and found["ran"] else 1


if __name__ == "__main__":
    run(main)
