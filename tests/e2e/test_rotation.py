"""Every certificate of a deployment is replaced while it runs, its authority included."""

from pathlib import Path

import numpy as np
import pytest
from e2e.mpc_cluster import inputs, kill, restart, small_net, start, tls, wait_until_served
from patience import ample

from secure_quant import reference
from secure_quant.errors import PeerUnavailable
from secure_quant.transport import Tls
from secure_quant.transport.certs import make_all
from secure_quant_client import MpcClient


@pytest.mark.parametrize("protocol", ["tls", "grpc"])
def test_a_running_deployment_takes_new_certificates(tmp_path: Path, protocol: str) -> None:
    graph = small_net()
    q = inputs(graph, 2)
    expected = reference.run_int(graph, q)
    options = {role: ["--link-protocol", protocol] for role in ("party0", "party1")}
    with start(tmp_path, graph, options=options) as cluster:
        old = {name: (cluster.certs / name).read_bytes()
               for name in ("ca.pem", "client.pem", "client.key")}  # fmt: skip
        make_all(cluster.certs, force=True)
        # The lanes' sessions end with the dealer, and new ones need every new certificate: that of
        # the dealer, which has only those, and the parties' own.
        kill(cluster.processes["dealer"].pid)
        restart(cluster, "dealer")
        wait_until_served(cluster)
        with MpcClient(cluster.targets["mpc"], tls=tls(cluster)) as client:
            np.testing.assert_array_equal(client.infer_int8(q, timeout=ample(20)), expected)
        with (
            MpcClient(cluster.targets["mpc"], tls=Tls(*old.values())) as client,
            pytest.raises(PeerUnavailable),
        ):
            client.infer_int8(q, timeout=ample(5))
        for role in ("party0", "party1"):  # no lane was started again
            assert (cluster.logs / f"{role}.log").read_text().count("lane lost") == 0
