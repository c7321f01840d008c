"""The one table error <-> gRPC status."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from secure_quant import errors
from secure_quant.wire import from_status, to_status
from secure_quant.wire.rpc_status import METADATA_KEY, decode_error_info
from secure_quant.wire.status import CODES, DOMAIN, leaves

EVERY = [getattr(errors, name) for name in errors.__all__]


def test_every_leaf_has_a_status() -> None:
    assert leaves()
    assert [leaf.__name__ for leaf in leaves() if leaf not in CODES] == []


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_crosses_the_wire_whole(kind: type[errors.SecureQuantError]) -> None:
    sent = kind("a thing", got=3, expected="<= 2", hint="try less")
    code, text, metadata = to_status(sent)
    back = from_status(code, text, metadata)
    assert type(back) is kind
    assert str(back) == str(sent) == text == "a thing: got 3, expected <= 2 (try less)"


def test_a_subclass_outside_the_table_stands_as_its_base() -> None:
    class Special(errors.MalformedMessage):
        pass

    assert type(from_status(*to_status(Special("x")))) is errors.MalformedMessage


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_bare_code_has_a_named_error(code: grpc.StatusCode) -> None:
    error = from_status(code, "from the network", None)
    assert isinstance(error, errors.SecureQuantError)
    assert type(error) in leaves() or type(error) is errors.ConfigError
    assert "from the network" in str(error)


def test_grpc_s_own_deadline_says_what_to_do() -> None:
    error = from_status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())
    assert isinstance(error, errors.DeadlineExceeded)
    assert str(error).startswith("no answer in time (")
    told = from_status(grpc.StatusCode.DEADLINE_EXCEEDED, "the lane is busy", ())
    assert str(told).startswith("the lane is busy (")


def test_grpc_s_own_length_refusal_is_named() -> None:
    text = "SERVER: Received message larger than max (70000000 vs. 67108864)"
    error = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, text, None)
    assert type(error) is errors.MessageTooLarge


class _Call:
    """What grpc_status reads of a call."""

    def __init__(self, status: tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]) -> None:
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status[0]

    def details(self) -> str:
        return self._status[1]

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return self._status[2]


def test_google_s_own_classes_read_our_details() -> None:
    """Independent reader: grpcio-status and googleapis-common-protos."""
    error = errors.BudgetExceeded("query budget", got=9, expected=4)
    status = rpc_status.from_call(_Call(to_status(error)))
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("BUDGET_EXCEEDED", DOMAIN)
    assert dict(info.metadata) == {"what": "query budget", "got": "9", "expected": "4"}


def test_we_read_details_that_google_s_classes_wrote() -> None:
    status = status_pb2.Status(code=5, message="gone")
    info = error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain=DOMAIN)
    status.details.add().Pack(info)
    details = ((METADATA_KEY, status.SerializeToString()),)
    assert type(from_status(grpc.StatusCode.NOT_FOUND, "gone", details)) is errors.ModelNotFound


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x1a\x7f", bytes(10_000)])
def test_garbled_details_fall_back_to_the_code(data: bytes) -> None:
    assert decode_error_info(data) is None
    error = from_status(grpc.StatusCode.UNAVAILABLE, "away", ((METADATA_KEY, data),))
    assert type(error) is errors.PeerUnavailable


def test_a_foreign_domain_is_not_taken_for_ours() -> None:
    status = status_pb2.Status(code=16, message="x")
    info = error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain="elsewhere.example")
    status.details.add().Pack(info)
    details = ((METADATA_KEY, status.SerializeToString()),)
    error = from_status(grpc.StatusCode.UNAUTHENTICATED, "x", details)
    assert type(error) is errors.Unauthenticated


def test_text_is_bounded() -> None:
    _, text, metadata = to_status(errors.ModelError("x" * 100_000, got="y" * 100_000))
    assert len(text) <= 500
    assert sum(len(value) for _, value in metadata) < 4096  # below HTTP/2's 8 KiB of metadata
