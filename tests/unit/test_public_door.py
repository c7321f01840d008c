"""What is public: sorted, real, and complete."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import secure_quant
import secure_quant_cli
import secure_quant_client
import secure_quant_server
from secure_quant_cli.extras import how_to_get

PACKAGES = (secure_quant, secure_quant_client, secure_quant_server, secure_quant_cli)

# Scripts and generated code have no door; peers are programs of their own.
WITHOUT_DOOR = ("secure_quant.wire.gen", "secure_quant_cli.__main__", "secure_quant_cli.peers")


def modules() -> Iterator[str]:
    """Found as files, so that a module that cannot be imported fails its own test only."""
    for package in PACKAGES:
        (folder,) = package.__path__
        for path in sorted(Path(folder).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package.__name__, *parts)).removesuffix(".__init__")
            if not name.startswith(WITHOUT_DOOR):
                yield name


def order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """CONSTANTS, Classes, functions, with numbers by value: as ruff's RUF022 sorts."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    parts = re.findall(r"\d+|\D+", name)
    return kind, [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@pytest.mark.parametrize("name", list(modules()))
def test_door_is_sorted_and_real(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if how_to_get(error.name or "") is None:
            raise
        pytest.skip(f"{error.name} is not here")
    door = getattr(module, "__all__", None)
    if door is None:
        public = [each for each in vars(module) if not each.startswith("_")]
        made_here = [
            each for each in public if getattr(vars(module)[each], "__module__", "") == name
        ]
        assert made_here == [], f"{name} has no __all__"
        return
    assert list(door) == sorted(set(door), key=order)
    for each in door:
        assert hasattr(module, each), each


def test_every_error_is_public_and_in_the_tree() -> None:
    from secure_quant import errors

    tree = errors.__doc__ or ""
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.SecureQuantError)
        assert f" {name}" in tree or tree.strip().endswith(name) or f"\n    {name}\n" in tree
    defined = {
        name for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }  # fmt: skip
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("door", [secure_quant, secure_quant_client], ids=lambda d: d.__name__)
def test_what_is_imported_at_first_use_is_shown_before(door) -> None:
    assert set(door.__all__) <= set(dir(door))


def test_what_a_client_imports_is_there() -> None:
    assert secure_quant_client.__all__ == sorted(secure_quant_client.__all__)
    for name in secure_quant_client.__all__:
        assert getattr(secure_quant_client, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        secure_quant_client.nothing  # noqa: B018
