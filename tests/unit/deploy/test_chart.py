"""The chart, rendered by Helm's own engine: what its values do, and what its schema refuses."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from secure_quant_cli.main import build_parser

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk, of the extra dev")

ROOT = Path(__file__).parents[3]
ROLES = ("dealer", "party0", "party1", "he", "onehost")


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manifests", ROOT / "tools" / "gen_manifests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(role: str, **values: Any) -> dict[str, dict[str, Any]]:
    """``Kind/name`` -> object."""
    made = yaml.safe_load_all(tool().rendered(role, values))
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in made}


def pod(made: Mapping[str, dict[str, Any]], role: str) -> dict[str, Any]:
    kind = "StatefulSet" if role == "onehost" else "Deployment"
    return dict(made[f"{kind}/{role}"]["spec"]["template"]["spec"])


def args(made: Mapping[str, dict[str, Any]], role: str) -> list[str]:
    return list(pod(made, role)["containers"][0]["args"])


def test_the_chart_has_no_fault() -> None:
    for role in ROLES:
        report = helm.lint(str(ROOT / "deploy" / "helm"), {"role": role}, strict=True)
        assert report["errors"] == []
        assert [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize("role", ROLES)
def test_manifests_are_what_the_chart_says(role: str) -> None:
    kept = (ROOT / "deploy" / "kubernetes" / f"{role}.yaml").read_text()
    assert kept == tool().manifest(role), "run make generated"


@pytest.mark.parametrize("role", ROLES)
def test_settings_reach_the_command(role: str) -> None:
    settings = {"max-calls": 10_000_000, "watch-seconds": 1.5, "reflection": False}
    made = rendered(role, settings=settings, metrics={"enabled": True})
    command = args(made, role)
    given = build_parser().parse_args(["serve", *command])
    assert (given.max_calls, given.watch_seconds, given.reflection) == (10_000_000, 1.5, False)
    assert given.metrics == "0.0.0.0:9100"
    (policy,) = (made[f"NetworkPolicy/{role}"]["spec"]["ingress"][-1],)
    assert policy["ports"] == [{"protocol": "TCP", "port": 9100}]
    assert policy["from"]


def test_lanes_have_a_port_each() -> None:
    made = rendered("party1", lanes=3)
    ports = [each["port"] for each in made["Service/link"]["spec"]["ports"]]
    assert ports == [7200, 7201, 7202]
    opened = [each["containerPort"] for each in pod(made, "party1")["containers"][0]["ports"]]
    assert opened == [7100, 7200, 7201, 7202, 9100]
    rule = made["NetworkPolicy/party1"]["spec"]["ingress"][1]
    assert rule["ports"] == [{"protocol": "TCP", "port": 7200, "endPort": 7202}]
    assert "3" in args(made, "party1")
    egress = rendered("party0", lanes=3)["NetworkPolicy/party0"]["spec"]["egress"][1]
    assert egress["ports"] == rule["ports"]


def test_browsers_reach_a_party_that_asks_for_tokens() -> None:
    web = {"enabled": True, "origins": "https://app.example", "certificate": "public"}
    made = rendered("party0", web=web, tokens={"secret": "tokens"})
    given = build_parser().parse_args(["serve", *args(made, "party0")])
    assert (given.http_listen, given.http_origins) == ("0.0.0.0:7443", "https://app.example")
    assert [str(given.http_cert), str(given.http_key)] == ["/web/tls.crt", "/web/tls.key"]
    mounts = pod(made, "party0")["containers"][0]["volumeMounts"]
    assert {"name": "web", "mountPath": "/web", "readOnly": True} in mounts
    assert made["Service/party0"]["spec"]["ports"][1]["targetPort"] == "web"
    assert {"ports": [{"protocol": "TCP", "port": 7443}]} in (
        made["NetworkPolicy/party0"]["spec"]["ingress"]
    )
    for role, values in (("party0", {}), ("he", {"tokens": {"secret": "tokens"}})):
        with pytest.raises(helm.HelmError):
            rendered(role, web=web, **values)


@pytest.mark.parametrize("role", ROLES)
def test_spans_may_go_to_the_collector_and_nowhere_else(role: str) -> None:
    made = rendered(role, traces={"collector": "http://collector.monitoring.svc:4317"})
    given = build_parser().parse_args(["serve", *args(made, role)])
    assert given.traces == "http://collector.monitoring.svc:4317"
    opened = made[f"NetworkPolicy/{role}"]["spec"]["egress"]
    others = rendered(role)[f"NetworkPolicy/{role}"]["spec"]["egress"]
    more = [each for each in opened if each not in others]
    ports = {port["port"] for each in more for port in each["ports"]}
    assert ports - {53} == {4317}


def test_cert_manager_issues_the_role() -> None:
    from secure_quant.transport.roles import Role

    values = yaml.safe_load((ROOT / "deploy/helm/examples/cert-manager.yaml").read_text())
    for role in ROLES:
        made = rendered(role, **values)
        asked = made[f"Certificate/{role}"]["spec"]
        who = Role.parse(role)
        assert asked["uris"] == [who.uri]
        assert asked["dnsNames"] == [who.dns_name]
        assert {"server auth", "client auth"} <= set(asked["usages"])
        (certs,) = (each for each in pod(made, role)["volumes"] if each["name"] == "certs")
        assert certs["secret"]["secretName"] == asked["secretName"]
        placed = {each["path"] for each in certs["secret"]["items"]}
        assert placed == {"ca.pem", f"{role}.pem", f"{role}.key"}


def test_a_digest_counts_instead_of_the_tag() -> None:
    digest = "sha256:" + 64 * "0"
    made = rendered("he", image={"repository": "r.example/he", "digest": digest})
    assert pod(made, "he")["containers"][0]["image"] == f"r.example/he@{digest}"


def test_monitors_and_replicas() -> None:
    monitor = {"enabled": True, "serviceMonitor": {"enabled": True}}
    made = rendered("he", metrics=monitor, autoscaling={"enabled": False}, replicas=5)
    assert made["Deployment/he"]["spec"]["replicas"] == 5
    assert "HorizontalPodAutoscaler/he" not in made
    watched = made["ServiceMonitor/he"]["spec"]["selector"]["matchLabels"]
    assert watched.items() <= made["Service/he-metrics"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("role", "values"),
    [
        ("party2", {}),
        ("party0", {"lane": 2}),
        ("party0", {"settings": {"insecure-plaintext": True}}),
        ("he", {"settings": {"tls": "/elsewhere"}}),
        ("dealer", {"tokens": {"secret": "tokens"}}),
        ("he", {"image": {"digest": "latest"}}),
        ("party0", {"lanes": 0}),
    ],
)
def test_the_schema_refuses(role: str, values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        tool().rendered(role, values)
