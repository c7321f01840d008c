"""The house: no circle of imports, files that can be read, few rooms in a room."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("secure_quant", "secure_quant_server", "secure_quant_client", "secure_quant_cli")
FOLDERS = ("secure_quant", "server", "client", "cli", "tests", "bench", "examples", "tools")
LONGEST = 400


def test_no_circle_of_imports() -> None:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    arrows = {
        name: {
            # A package's own door imports its rooms; who imports a room passes through the door.
            found
            for found in graph.find_modules_directly_imported_by(name)
            if not found.startswith(f"{name}.")
        }
        for name in graph.modules
    }
    try:
        order = list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert order.index("secure_quant.errors") < order.index("secure_quant.ir.graph")


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_can_be_read_in_one_sitting(folder: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / folder).rglob("*.py")
        if "wire/gen" not in str(path)
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert long == {}


def test_secret_sharing_has_at_most_five_rooms() -> None:
    rooms = {path.name for path in (ROOT / "secure_quant" / "mpc").iterdir()}
    assert len(rooms - {"__init__.py", "__pycache__"}) <= 5
