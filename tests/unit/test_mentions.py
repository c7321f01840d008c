"""tools/mentions.py: engines are named in the registry and hardly anywhere else."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
'''mpc, in prose.'''
import secure_quant.he.plan
from secure_quant_client import MpcClient
def he_engine(leveled): "he, in prose"
kinds = {"mpc": 1, "the": 2, "he-leveled": 3, "mpc.py": 4, "of mpc": 5}
made = Cluster(he=kinds.mpc_part).she
"""


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mentions", ROOT / "tools" / "mentions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_no_more_than_the_architecture_states() -> None:
    stated = re.search(r"registry, and\s+now (\d+):", (ROOT / "ARCHITECTURE.md").read_text())
    module = tool()
    found = [each for room in module.ROOMS for each in module.found_in(room)]
    assert 0 < len(found) <= int(stated[1]), found


def test_what_counts() -> None:
    assert sorted(tool().mentions(ast.parse(TEXT))) == [
        (3, "secure_quant.he.plan"),
        (4, "MpcClient"),
        (5, "he_engine"),
        (5, "leveled"),
        (6, "he-leveled"),
        (6, "mpc"),
        (6, "mpc.py"),
        (7, "he"),
        (7, "mpc_part"),
    ]
