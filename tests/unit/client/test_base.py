import time

import pytest

from secure_quant.errors import ConfigError, DeadlineExceeded, InsecureRefused, ServiceError
from secure_quant.transport import InsecurePlaintext
from secure_quant.transport.certs import Authority
from secure_quant_client import HeClient, Tls
from secure_quant_client.base import Deadline, call_metadata


def test_a_token_is_never_sent_in_the_clear() -> None:
    with pytest.raises(InsecureRefused, match="token"):
        call_metadata(InsecurePlaintext(), "secret")
    with pytest.raises(InsecureRefused):
        HeClient("localhost:1", tls=None)


def test_a_token_that_is_no_header_is_refused_without_quoting_it() -> None:
    authority = Authority()
    tls = Tls(authority.pem, *authority.issue("client"))
    for token in ("a\nb", "ü"):
        with pytest.raises(ConfigError) as caught:
            call_metadata(tls, token)
        assert token not in str(caught.value)
    assert call_metadata(tls, "abc") == (("authorization", "Bearer abc"),)
    assert call_metadata(tls, None) == ()


def test_a_deadline_ends() -> None:
    assert 9 < Deadline(10).remaining() <= 10
    spent = Deadline(1e-9)
    time.sleep(0.001)
    with pytest.raises(DeadlineExceeded):
        spent.remaining()
    with pytest.raises(ConfigError):
        Deadline(0)


def test_no_stats_before_the_first_inference() -> None:
    with HeClient("localhost:1", tls=InsecurePlaintext()) as client, pytest.raises(ServiceError):
        _ = client.stats
