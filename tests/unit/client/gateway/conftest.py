from collections.abc import Iterator

import pytest

from plain_insecure import ENGINE
from secure_quant.engines import registered


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The engine that protects nothing is one."""
    with registered(ENGINE):
        yield
