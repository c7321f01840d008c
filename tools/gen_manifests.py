"""deploy/helm -> deploy/kubernetes/ROLE.yaml.

The chart's defaults for each role, for `kubectl apply` without Helm. Helm's own engine renders, by
the package helm-python-sdk.
"""

from __future__ import annotations

import re
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


def made() -> dict[Path, str]:
    """Path -> what is to stand there."""
    return {FOLDER / f"{role}.yaml": manifest(role) for role in ROLES}
