"""A lane's worker that cannot start."""

import asyncio
from dataclasses import replace

from patience import ample
from unit.server.test_lanes import config

from secure_quant.transport import Tls
from secure_quant.transport.certs import Authority
from secure_quant_server.common import workers as workers_module
from secure_quant_server.common.workers import Template
from secure_quant_server.mpc.kinds import lane_kind
from secure_quant_server.mpc.lanes import LaneHandle


def test_a_half_rotated_certificate_is_a_lost_lane_and_no_more(caplog, monkeypatch) -> None:
    """The key of one certificate with another, as a rotation leaves them for a moment."""
    monkeypatch.setattr(workers_module, "RESTART_S", (0.01, 0.04))
    authority = Authority()
    (cert, _), (_, key) = authority.issue("party1"), authority.issue("party1")

    async def work() -> None:
        kind = replace(lane_kind("none"), modules=())
        template = Template(kind)
        handle = LaneHandle(template, config(Tls(authority.pem, cert, key)), None, lambda: None)
        running = asyncio.ensure_future(handle.run())
        while sum(record.getMessage() == "lane lost" for record in caplog.records) < 3:
            await asyncio.sleep(0.02)
            assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await template.stop()

    with caplog.at_level("INFO", "secure_quant"):
        asyncio.run(asyncio.wait_for(work(), ample(60)))
