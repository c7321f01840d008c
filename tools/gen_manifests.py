#!/usr/bin/env python3
"""deploy/helm -> deploy/kubernetes/ROLE.yaml, and a check that they agree.

python tools/gen_manifests.py            write the manifests
python tools/gen_manifests.py --check    exit 1 if a committed one is not what would be written

The chart's defaults for each role, for `kubectl apply` without Helm. Helm's own engine renders, by
the package helm-python-sdk.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHART, FOLDER = ROOT / "deploy" / "helm", ROOT / "deploy" / "kubernetes"
ROLES = ("dealer", "party0", "party1", "he", "onehost")
ORDER = (
    "namespace", "serviceaccount", "certificate", "workload", "service", "servicemonitor",
    "scaling", "networkpolicy",
)  # fmt: skip
HEAD = "# Made by tools/gen_manifests.py from the chart in deploy/helm; do not edit.\n"


def rendered(role: str, values: Mapping[str, Any] | None = None) -> str:
    """What `helm template` makes of the chart for a role, in a namespace as the README says.

    Raises HelmError of the package for values that the schema refuses.
    """
    import helm_python

    given = {"role": role, **(values or {})}
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(given)
        made = chart.render(given, name=role, namespace=f"secure-quant-{role}")
    texts = {Path(name).stem: text for name, text in made.items() if name.endswith(".yaml")}
    parts = [texts[name].strip("\n") for name in ORDER if texts.get(name, "").strip()]
    unknown = set(texts) - set(ORDER)
    if unknown:
        raise ValueError(f"templates without a place in the file: {sorted(unknown)}")
    return re.sub(r"[ \t]+$", "", "\n---\n".join(parts), flags=re.MULTILINE) + "\n"


def manifest(role: str) -> str:
    """What deploy/kubernetes/ROLE.yaml is to say."""
    return HEAD + rendered(role, {"namespace": {"create": True}})


def main() -> None:
    """Write the manifests, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for role in ROLES:
        path, made = FOLDER / f"{role}.yaml", manifest(role)
        if not check:
            path.write_text(made)
        elif not path.exists() or path.read_text() != made:
            sys.exit(f"{path.name} is not what the chart says: run tools/gen_manifests.py")


if __name__ == "__main__":
    main()
