"""Environments that hold exactly what named extras bring, made of links into this one.

What `pip install '.[extras]'` would install follows from the metadata of what is installed here:
the requirements of the extras, theirs, and so on. An environment of links to just those takes a
second to make, and a command that needs anything more fails in it as it would for a user.
"""

from __future__ import annotations

import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["ROOT", "closure", "make_environment"]

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT, ROOT / "server", ROOT / "client", ROOT / "cli")


def closure(extras: Iterable[str]) -> dict[str, Distribution]:
    """Name -> distribution of all that secure-quant with these extras needs, itself included."""
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [("secure-quant", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform, or optional to its dependant: absent for users too
        own = name == "secure-quant"
        for need in _declared() if own else map(Requirement, found[name].requires or ()):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                wanted = canonicalize_name(need.name)
                waiting += [(wanted, part) for part in ("", *need.extras)]
    return found


def _declared() -> list[Requirement]:
    """What pyproject.toml says today: the metadata installed here may be older."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [(line, "") for line in project["dependencies"]]
    for extra, needs in project["optional-dependencies"].items():
        lines += [(line, f"extra == '{extra}'") for line in needs]
    made = []
    for line, condition in lines:
        need = Requirement(line)
        if condition:
            both = f"({need.marker}) and {condition}" if need.marker else condition
            need.marker = Marker(both)
        made.append(need)
    return made


def make_environment(folder: Path, extras: Iterable[str], *, crypten: bool = False) -> Path:
    """A virtual environment in ``folder`` with the extras, and CrypTen where it was added by the
    second command; its folder of programs."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    dists = closure(extras)
    if crypten:
        dists["crypten"] = distribution("crypten")
    for name, dist in dists.items():
        if name != "secure-quant":
            _link(dist, site)
    _link_metadata(distribution("secure-quant"), site)
    (site / "sources.pth").write_text("".join(f"{path}\n" for path in SOURCES))
    command = folder / "bin" / "secure-quant"
    command.write_text(
        f"#!{folder}/bin/python\nimport sys\nfrom secure_quant_cli.main import main\n"
        "sys.exit(main())\n"
    )
    command.chmod(0o755)
    return folder / "bin"


def _link(dist: Distribution, site: Path) -> None:
    """Links to the top-level files and folders of a distribution."""
    for file in dist.files or ():
        top = file.parts[0]
        if top in ("..", "__pycache__") or top.endswith(".pth"):
            continue
        source, target = Path(str(dist.locate_file(top))), site / top
        if len(file.parts) > 1 and source.is_dir() and _shared(source):
            target, source = site / file, Path(str(dist.locate_file(file)))
            target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() and source.exists():
            target.symlink_to(source)


def _shared(folder: Path) -> bool:
    """A namespace that several distributions fill, such as ``google``."""
    return not (folder / "__init__.py").exists() and not folder.name.endswith(
        (".dist-info", ".libs")
    )


def _link_metadata(dist: Distribution, site: Path) -> None:
    for file in dist.files or ():
        if file.parts[0].endswith(".dist-info"):
            source = Path(str(dist.locate_file(file.parts[0])))
            if not (site / file.parts[0]).exists():
                (site / file.parts[0]).symlink_to(source)
