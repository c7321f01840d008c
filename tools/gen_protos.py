#!/usr/bin/env python3
"""protos/secure_quant/*/*.proto -> secure_quant/wire/gen, and a check that the two agree.

protoc derives Python imports from proto paths, such as ``secure_quant.v1``, which would claim a
module of the hand-written package. The generated code lives in ``secure_quant.wire.gen`` instead,
so its imports are rewritten; the descriptors keep the canonical proto paths that reflection and
other languages see. Messages of a package that is not ours are built in a pool of their own: other
libraries bring the same ones, and a pool takes a name once.

    python tools/gen_protos.py            write the code
    python tools/gen_protos.py --check    exit 1 if the committed code is not what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGES = ("secure_quant/v1", "secure_quant/open_inference")
GEN = ROOT / "secure_quant" / "wire" / "gen"
INIT = '"""Generated from protos/ by tools/gen_protos.py; do not edit."""\n'

_IMPORT = re.compile(r"^(\s*)(from|import) secure_quant\.(?:v1|open_inference)\b", re.MULTILINE)
_MODULE = re.compile(r"\bsecure_quant\.(?:v1|open_inference)\.(\w+_pb2)\b")
_POOL, _OWN_POOL = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"
_FOREIGN = re.compile(r"\bpackage (?!secure_quant\.)\w+;")


def generate() -> dict[str, str]:
    """File name -> text of everything that belongs into ``GEN``."""
    sources = sorted(
        path.relative_to(PROTOS).as_posix()
        for package in PACKAGES
        for path in PROTOS.glob(f"{package}/*.proto")
    )
    with tempfile.TemporaryDirectory() as scratch:
        kinds = ("python", "grpc_python", "mypy", "mypy_grpc")
        # The two mypy plugins stand beside the interpreter, which need not be on PATH.
        plugins = [
            f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
            for name in ("mypy", "mypy_grpc")
        ]
        status = protoc.main(
            ["protoc", f"-I{PROTOS}", *plugins]
            + [f"--{kind}_out={scratch}" for kind in kinds]
            + sources
        )
        if status != 0:
            raise SystemExit(f"protoc failed with status {status}")
        made = [path for package in PACKAGES for path in sorted(Path(scratch, package).iterdir())]
        foreign = {Path(name).stem for name in sources
                   if _FOREIGN.search((PROTOS / name).read_text())}  # fmt: skip
        return {"__init__.py": INIT} | {
            path.name: _rewrite(
                path.read_text(), own_pool=path.stem.removesuffix("_pb2") in foreign
            )
            for path in made
        }


def _rewrite(text: str, *, own_pool: bool) -> str:
    text = _MODULE.sub(r"secure_quant.wire.gen.\1", text)
    if own_pool:
        text = text.replace(_POOL, _OWN_POOL)
    return _IMPORT.sub(r"\1\2 secure_quant.wire.gen", text)


def _committed() -> dict[str, str]:
    return {path.name: path.read_text() for path in GEN.glob("*.py*") if path.is_file()}


def main() -> int:
    """Exit status: 0, or 1 if ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    new, old = generate(), _committed()
    stale = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    if check:
        for name in stale:
            print(f"not current: secure_quant/wire/gen/{name} (run: make proto)", file=sys.stderr)
        return 1 if stale else 0
    GEN.mkdir(exist_ok=True)
    for name in stale:
        if name in new:
            (GEN / name).write_text(new[name])
        else:
            (GEN / name).unlink()
        print(f"{'wrote' if name in new else 'removed'} secure_quant/wire/gen/{name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
