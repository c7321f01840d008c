from collections.abc import Callable

import pytest

from secure_quant_cli.cluster import free_ports


@pytest.fixture
def unused_port() -> Callable[[], int]:
    return lambda: free_ports(1)[0]
