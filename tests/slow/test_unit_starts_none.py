"""That a unit test which starts a process fails is seen here, where one may."""

import shutil
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CASES = """
import os, subprocess, sys

import pytest


def test_by_subprocess():
    subprocess.run([sys.executable, "-c", ""])


def test_by_fork():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


@pytest.fixture
def started():
    return os.system("true")


def test_by_a_fixture(started):
    assert started == 0


def test_by_nobody():
    assert True
"""


def test_a_unit_test_that_starts_a_process_fails(pytester: pytest.Pytester) -> None:
    shutil.copy(Path(__file__).parents[1] / "unit" / "conftest.py", pytester.path)
    pytester.makepyfile(CASES)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(["*belongs in tests/slow*"])
