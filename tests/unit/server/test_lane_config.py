"""What a front tells a lane's process arrives whole."""

from dataclasses import asdict

from secure_quant.mpc.runtime.options import LaneOptions
from secure_quant.transport import InsecurePlaintext
from secure_quant.transport.certs import Authority
from secure_quant_client import Tls
from secure_quant_server.common.messages import encode
from secure_quant_server.mpc.config import LaneConfig
from secure_quant_server.mpc.messages import TO_WORKER, Place
from secure_quant_server.options import PartyOptions


def test_every_option_reaches_the_lane() -> None:
    place = Place(party=0, lane=3, link="a:1", dealer="b:2")
    options = LaneOptions(
        link_protocol="grpc", border="none", material_bytes=1, batch=2, staged=4, staged_bytes=5
    )
    authority = Authority()
    tls = Tls(authority.pem, *authority.issue("party0"), server_name="party1.example")
    for security in (InsecurePlaintext(), tls):
        config = LaneConfig(
            place=place, options=options, security=security, bundles=(b"one", b"", b"three")
        )  # fmt: skip
        head, body = encode(config.to_setup())
        made = LaneConfig.from_setup(TO_WORKER.read(head[12:], b"".join(body)))
        assert made == config


def test_a_party_hands_its_lanes_every_option_of_theirs() -> None:
    told = {"link_protocol": "grpc", "border": "none", "batch": 2, "material_bytes": 3,
            "staged": 4, "staged_bytes": 5}  # fmt: skip
    party = PartyOptions(
        listen="a:1", security=InsecurePlaintext(), link="a:2", dealer="b:2", **told
    )
    assert asdict(LaneOptions.of(party)) == told
    assert type(LaneOptions.of(party)) is LaneOptions
