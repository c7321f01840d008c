"""What is built and what it says of itself; ranges, pins and hints that agree with one another."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from secure_quant import __version__
from secure_quant.engines import Engine, engines
from secure_quant.errors import ConfigError
from secure_quant_cli import add_crypten, serve
from secure_quant_cli.engines.mpc import start_party
from secure_quant_cli.extras import ADD_CRYPTEN, EXTRAS, how_to_get, how_to_install
from secure_quant_cli.main import build_parser, main

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS_DECLARED = PROJECT["optional-dependencies"]
SOURCES = ("secure_quant", "server/secure_quant_server", "client/secure_quant_client",
           "cli/secure_quant_cli")  # fmt: skip
BUILD = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


def requirements(*, tools: bool) -> list[Requirement]:
    lines = [*PROJECT["dependencies"]]
    for extra, wanted in EXTRAS_DECLARED.items():
        if extra == "realweights":  # data of the interop tests, pinned where it is named
            continue
        lines += wanted if tools or extra != "dev" else []
    return [one for one in map(Requirement, lines) if one.name != PROJECT["name"]]


def pins(path: Path) -> dict[str, Version]:
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): Version(version)
            for name, version in (line.split("==") for line in lines)}  # fmt: skip


def files(folder: str, pattern: str, *, some: bool = True) -> set[str]:
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)
             if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert found or not some
    return found


def build(what: str, tree: Path, out: Path) -> Path:
    """Without network and without an environment of its own."""
    command = (sys.executable, "-c", BUILD, what, out)
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    place = tmp_path_factory.mktemp("sdist")
    skip = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "node_modules", "out", "demo-out", "*.egg-info"
    )
    shutil.copytree(ROOT, place / "tree", ignore=skip)
    (place / "out").mkdir()
    with tarfile.open(build("build_sdist", place / "tree", place / "out")) as archive:
        archive.extractall(place, filter="data")
    return place / f"secure_quant-{__version__}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from the source distribution alone."""
    return zipfile.ZipFile(build("build_wheel", sdist, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_sdist_holds_what_explains_the_code(sdist: Path) -> None:
    named = {"SECURITY.md", "CHANGELOG.md", "ARCHITECTURE.md", "LICENSE", "README.md",
             "constraints.txt", "Makefile"}  # fmt: skip
    wanted = named | files("protos", "*") | files("docs", "*") | files("tests", "*.py")
    wanted |= {f"client/web/{name}" for name in ("package.json", "src/client.ts", "demo/page.ts")}
    assert [name for name in sorted(wanted) if not (sdist / name).is_file()] == []


def test_the_wheel_holds_the_code_the_protos_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    wanted = {
        Path(name).relative_to(Path(source).parent).as_posix()
        for source in SOURCES for path in ("*.py", "*.pyi", "py.typed")
        for name in files(source, path, some=path != "*.pyi")
    }  # fmt: skip
    protos = {Path(name).relative_to("protos").as_posix() for name in files("protos", "*.proto")}
    page = {f"secure_quant_cli/web/page.{kind}" for kind in ("css", "html", "js")}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == wanted | protos | page
    for name in protos:
        assert wheel.read(name) == (ROOT / "protos" / name).read_bytes()


def test_the_metadata_says_what_it_is(metadata: Message) -> None:
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    classifiers = metadata.get_all("Classifier") or []
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    assert not [each for each in classifiers if each.startswith("License ::")]
    assert "homomorphic-encryption" in metadata["Keywords"]
    assert set(metadata.get_all("Provides-Extra") or []) == set(EXTRAS_DECLARED)
    assert not any("example." in url for url in metadata.get_all("Project-URL") or [])


def test_what_others_install_are_ranges(metadata: Message) -> None:
    for line in metadata.get_all("Requires-Dist") or []:
        one = Requirement(line)
        if one.name == PROJECT["name"] or re.search(
            r"extra == .(dev|realweights).", str(one.marker)
        ):
            continue
        operators = {each.operator for each in one.specifier}
        assert operators == {">=", "<"}, line


def test_every_requirement_is_pinned_within_its_range() -> None:
    pinned = pins(ROOT / "constraints.txt")
    for one in requirements(tools=True):
        name = canonicalize_name(one.name)
        assert name in pinned, name
        assert one.specifier.contains(pinned[name]), name


def test_generated_code_runs_on_the_oldest_that_the_ranges_allow() -> None:
    generator = pins(ROOT / "tools" / "protoc.txt")
    lowest = {canonicalize_name(one.name): Version(each.version)
              for one in requirements(tools=False) for each in one.specifier
              if each.operator == ">="}  # fmt: skip
    assert generator["grpcio-tools"] <= lowest["grpcio"]
    for path in (ROOT / "secure_quant" / "wire" / "gen").glob("*_pb2.py"):
        (made,) = re.findall(r"^# Protobuf Python Version: (.+)$", path.read_text(), re.MULTILINE)
        assert Version(made) <= lowest["protobuf"]
        assert lowest["protobuf"].major == Version(made).major  # and one major more may run it
    for path in (ROOT / "secure_quant" / "wire" / "gen").glob("*_pb2_grpc.py"):
        (made,) = re.findall(r"^GRPC_GENERATED_VERSION = '(.+)'$", path.read_text(), re.MULTILINE)
        assert Version(made) <= lowest["grpcio"]


@pytest.mark.parametrize("module", sorted(EXTRAS))
def test_hints_name_extras_that_exist(module: str) -> None:
    distributions = {
        "PIL": "pillow",
        "opentelemetry": "opentelemetry-sdk",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
    }
    name = distributions.get(module, module).replace("grpc_", "grpcio-").replace("_", "-")
    brought = [Requirement(line).name for line in EXTRAS_DECLARED[EXTRAS[module]]]
    assert name in brought
    assert how_to_get(f"{module}.inner") == how_to_install(EXTRAS[module])


@pytest.mark.parametrize("engine", engines(), ids=lambda engine: engine.name)
def test_an_engine_s_own_extra_is_named(engine: Engine) -> None:
    assert how_to_get(engine.package, engine.name) == how_to_install(engine.extra)
    for role in engine.roles:
        assert how_to_get(engine.package, role.name) == how_to_install(engine.extra)


def test_no_hint_names_a_package_of_an_index_that_is_not_ours() -> None:
    bad = re.compile(r"pip install ['\"]?secure[-_]quant|secure-quant\[")
    places = [name for source in SOURCES for name in files(source, "*.py")]
    places += [*files("docs", "*.md"), *files("deploy", "*.md"), "README.md"]
    for name in places:
        text = (ROOT / name).read_text()
        if name != "cli/secure_quant_cli/extras.py":  # which says why not
            assert not bad.search(text), name


def test_crypten_is_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ADD_CRYPTEN in (how_to_get("crypten.mpc") or "")
    assert f"secure-quant {build_parser().parse_args(ADD_CRYPTEN.split()[1:]).command}" == (
        ADD_CRYPTEN
    )
    assert main(["add-crypten"]) == 0  # it is here already
    assert f"CrypTen {add_crypten.VERSION} is ready" in capsys.readouterr().out


def test_a_party_without_crypten_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", {}.get)
    monkeypatch.setattr(serve, "run", start_party)
    line = "serve party --bundle b.sqb --listen 127.0.0.1:0 --dealer d:1 --peer p:1 --tls certs"
    assert main(line.split()) == 2
    assert f"needs crypten: run: {ADD_CRYPTEN}" in capsys.readouterr().err


def test_crypten_asks_for_the_extra_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_crypten, "NEEDS", ("nothing_like_this",))
    with pytest.raises(ConfigError, match=r"no nothing_like_this.*the extra 'mpc'"):
        add_crypten.run(build_parser().parse_args(["add-crypten"]))


@pytest.mark.parametrize("pip", ["", "raise SystemExit(1)"])
def test_an_install_that_fails_is_told(
    pip: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``pip``: a stand-in for the module, or none at all."""
    monkeypatch.setattr(add_crypten, "_installed", lambda: None)
    if pip:
        stand_in = tmp_path / "python"
        stand_in.write_text("#!/bin/sh\nexit 1\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(add_crypten.sys, "executable", str(stand_in))
        monkeypatch.setattr(add_crypten, "find_spec", lambda name: name)
    else:
        monkeypatch.setattr(add_crypten, "find_spec", lambda name: None if name == "pip" else name)
    with pytest.raises(ConfigError, match=r"status 1 of pip" if pip else r"without pip"):
        add_crypten.run(build_parser().parse_args(["add-crypten"]))
