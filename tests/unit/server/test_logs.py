"""Nobody speaks without end, or forges a line."""

from secure_quant.errors import MalformedMessage, ModelNotFound
from secure_quant_server.common.logs import Limiter


def test_the_same_is_said_so_often_and_counted() -> None:
    now = 0.0
    limiter = Limiter(burst=2, window_s=10, most=2, clock=lambda: now)
    assert [limiter.more("a") for _ in range(5)] == [0, 0, None, None, None]
    assert limiter.more("b") == 0
    now = 10.0
    assert [limiter.more("a") for _ in range(3)] == [3, 0, None]
    limiter.more("b")
    limiter.more("c")  # a is forgotten: memory is bounded
    assert limiter.more("a") == 0


def test_what_a_caller_chose_cannot_forge_a_line_or_move_a_cursor() -> None:
    error = ModelNotFound("model", got="\x1b[2J\n{}\r\x00\u202e", expected="ä b")
    assert str(error) == r"model: got \x1b[2J\n{}\r\x00\u202e, expected ä b"
    assert str(MalformedMessage("plain text, as ever")) == "plain text, as ever"
