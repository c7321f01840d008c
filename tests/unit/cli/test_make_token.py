"""`secure-quant make-token`: what it writes is what servers take."""

import hashlib
import json
from pathlib import Path

import pytest

from secure_quant.errors import Unauthenticated
from secure_quant_cli.main import main
from secure_quant_server.common import Tokens


def test_servers_know_the_token_that_it_gives_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "tokens", tmp_path / "bob.token"
    assert main(["make-token", "alice", "--file", str(file)]) == 0
    alice = capsys.readouterr().out.strip()
    file.chmod(0o640)
    assert main(["make-token", "bob", "--file", str(file), "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    bob = out.read_text().strip()
    known = Tokens.from_file(file)
    assert (known.name(alice), known.name(bob)) == ("alice", "bob")
    with pytest.raises(Unauthenticated):
        known.name("another")
    assert out.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_mode & 0o777 == 0o640
    assert hashlib.sha256(bob.encode()).hexdigest() in file.read_text()
    assert not {alice, bob} & set(file.read_text().split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bob.token", "tokens"]
    assert main(["make-token", "eve", "--file", str(file), "--json"]) == 0
    assert known.name(json.loads(capsys.readouterr().out)["token"]) == "eve"


def test_the_file_stays_as_it_is_where_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, there = tmp_path / "tokens", tmp_path / "there"
    file.write_text("# who may\n")
    there.write_text("mine")
    assert main(["make-token", "alice", "--file", str(file)]) == 0
    before = file.read_text()
    for line in (
        ["alice", "--file", str(file)],  # a name that is there
        ["a/b", "--file", str(file)],
        ["bob", "--file", str(file), "--out", str(there)],
        ["bob", "--file", str(tmp_path / "nowhere" / "tokens")],
    ):
        assert main(["make-token", *line]) == 2
    assert (file.read_text(), there.read_text()) == (before, "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "tokens"]
