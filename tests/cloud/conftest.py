"""Images are built once a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud.machines import Images, missing


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    lacks = missing()
    if lacks is not None:
        pytest.skip(lacks)
    made = Images(Path(tmp_path_factory.mktemp("images")))
    yield made
    made.remove()
