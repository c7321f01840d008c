"""An unmodified CrypTen program in two processes over our TLS link, with a third as dealer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import ample

from secure_quant.transport.certs import make_all
from secure_quant_cli.cluster import free_ports

PARTY = Path(__file__).with_name("crypten_party.py")
DEALER = """
import asyncio, sys
from secure_quant.transport import Tls
from secure_quant_server.mpc import serve_dealer
asyncio.run(serve_dealer([], listen=sys.argv[1], tls=Tls.from_dir(sys.argv[2], "dealer")))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    certs = tmp_path_factory.mktemp("crypten") / "certs"
    make_all(certs)
    link, dealer = (f"127.0.0.1:{port}" for port in free_ports(2))
    serving = subprocess.Popen([sys.executable, "-c", DEALER, dealer, str(certs)])
    try:
        parties = [
            subprocess.Popen(
                [sys.executable, str(PARTY), str(rank), link, dealer, str(certs)],
                stdout=subprocess.PIPE,
            )
            for rank in (1, 0)
        ]
        try:
            outputs = [party.communicate(timeout=ample(150))[0] for party in parties]
        finally:
            for party in parties:
                party.kill()
                party.wait()
    finally:
        serving.terminate()
        assert serving.wait(ample(20)) == 0
    return [json.loads(output) for output in outputs]


def test_integers_are_exact(answers: list[dict]) -> None:
    assert all(answer["exact"] == answers[0]["exact"] for answer in answers)
    assert all(answers[0]["exact"].values()), answers[0]["exact"]
    assert len(answers[0]["exact"]) == 6


def test_fixed_point_is_as_close_as_its_precision(answers: list[dict]) -> None:
    # 16 fractional bits; the reciprocal is an iteration of CrypTen's.
    for answer in answers:
        for name, error in answer["close"].items():
            assert error < (2e-3 if name == "reciprocal" else 2e-4), (name, error)


def test_sharings_of_zero_are_fresh_and_hide(answers: list[dict]) -> None:
    """Both sharings add up to zero, and no share repeats or is small."""
    one, two = (np.array(answer["zero shares"], np.int64) for answer in answers)
    with np.errstate(over="ignore"):
        assert not (one + two).any()
    everything = np.abs(one).ravel()
    assert len(set(everything.tolist())) == 16
    assert everything.min() > 2**32  # uniform: sixteen chances of 2^-31
