"""What a front tells a lane's process arrives whole."""

from secure_quant.mpc.runtime.session import LaneOptions
from secure_quant.transport import InsecurePlaintext
from secure_quant.transport.certs import Authority
from secure_quant_client import Tls
from secure_quant_server.common.messages import encode
from secure_quant_server.mpc.config import LaneConfig
from secure_quant_server.mpc.messages import TO_WORKER


def test_every_option_reaches_the_lane() -> None:
    options = LaneOptions(3, material_bytes=1, batch=2, staged=4)
    authority = Authority()
    tls = Tls(authority.pem, *authority.issue("party0"), server_name="party1.example")
    for security in (InsecurePlaintext(), tls):
        config = LaneConfig(
            party=0, link="a:1", dealer="b:2", options=options, security=security,
            bundles=(b"one", b"", b"three"), link_protocol="grpc", border="none",
        )  # fmt: skip
        head, body = encode(config.to_setup())
        made = LaneConfig.from_setup(TO_WORKER.read(head[12:], body))
        assert made == config
