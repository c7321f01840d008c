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


def workload(made: Mapping[str, dict[str, Any]], role: str) -> dict[str, Any]:
    (found,) = (made[f"{kind}/{role}"] for kind in ("StatefulSet", "Deployment")
                if f"{kind}/{role}" in made)  # fmt: skip
    return found


def pod(made: Mapping[str, dict[str, Any]], role: str) -> dict[str, Any]:
    return dict(workload(made, role)["spec"]["template"]["spec"])


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


@pytest.mark.parametrize(("role", "unset"), [("he", 2), ("dealer", 1), ("onehost", None)])
def test_workers(role: str, unset: int | None) -> None:
    for values, expected in (({}, unset), ({"workers": 3}, 3)):
        given = build_parser().parse_args(["serve", *args(rendered(role, **values), role)])
        default = {"dealer": 1}.get(role)
        assert (default if given.workers is None else given.workers) == expected
    assert "--workers" not in args(rendered("party0", workers=3), "party0")
    assert "0" in args(rendered("he", workers=0), "he")  # evaluates in the server's process


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


def test_pods_of_the_two_parties_are_paired_by_number() -> None:
    """What Kubernetes would make of both sets: the names of pods, and what their commands say."""
    web = {"enabled": True}
    zero, one = (
        rendered(role, pairs=3, lanes=2, web=web, tokens={"secret": "tokens"})
        for role in ("party0", "party1")
    )
    link = one["Service/link"]
    assert (link["spec"]["clusterIP"], link["spec"]["publishNotReadyAddresses"]) == ("None", True)
    dialled = set()
    for made, role in ((zero, "party0"), (one, "party1")):
        found = workload(made, role)
        assert found["kind"] == "StatefulSet"
        assert (found["spec"]["replicas"], found["spec"]["podManagementPolicy"]) == (3, "Parallel")
        assert f"Service/{role}" not in made  # which would part the shares of one input
        governing = made[f"Service/{found['spec']['serviceName']}"]["spec"]
        labels = found["spec"]["template"]["metadata"]["labels"]
        assert governing["clusterIP"] == "None"
        assert governing["selector"].items() <= labels.items()
        for number in range(3):
            pods = labels | {"statefulset.kubernetes.io/pod-name": f"{role}-{number}"}
            service = made[f"Service/{role}-{number}"]["spec"]
            assert service["selector"].items() <= pods.items()
            assert service["selector"].items() - labels.items()  # one pod alone
            assert [each["port"] for each in service["ports"]] == [7100, 7443]
            (each,) = pod(made, role)["containers"][0]["env"]
            where = each["valueFrom"]["fieldRef"]["fieldPath"]
            assert (each["name"], "apps.kubernetes.io/pod-index" in where) == ("PAIR", True)
            words = [word.replace("$(PAIR)", str(number)) for word in args(made, role)]
            given = build_parser().parse_args(["serve", *words])
            if role == "party0":
                dialled.add(given.peer)
    namespace = link["metadata"]["namespace"]
    names = {f"{one['StatefulSet/party1']['metadata']['name']}-{n}.link.{namespace}.svc:7200"
             for n in range(3)}  # fmt: skip
    assert dialled == names
    elsewhere = rendered("party0", pairs=2, peer="p$(PAIR).b.example:7200")
    assert "p$(PAIR).b.example:7200" in args(elsewhere, "party0")
    with pytest.raises(helm.HelmError, match="PAIR"):
        rendered("party0", pairs=2, peer="b.example:7200")
    assert "StatefulSet/dealer" not in rendered("dealer", pairs=2)


@pytest.mark.heavy
def test_pairs_are_valid_for_kubernetes() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="of the extra dev").validate
    for role in ("party0", "party1"):
        for each in rendered(role, pairs=2, budgetStore={"secret": "store"}).values():
            validate(each, "1.28", strict=True)


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


@pytest.mark.parametrize("role", ["party0", "party1", "he", "onehost"])
def test_budgets_lie_in_a_store(role: str) -> None:
    made = rendered(role, budgetStore={"secret": "store", "alone": True}, settings={"budget": 9})
    given = build_parser().parse_args(["serve", *args(made, role)])
    assert (str(given.budget_store), given.budget_alone, given.budget) == ("/store/url", True, 9)
    mounts = pod(made, role)["containers"][0]["volumeMounts"]
    assert {"name": "store", "mountPath": "/store", "readOnly": True} in mounts
    opened = made[f"NetworkPolicy/{role}"]["spec"]["egress"]
    others = rendered(role)[f"NetworkPolicy/{role}"]["spec"]["egress"]
    more = [each for each in opened if each not in others]
    assert {port["port"] for each in more for port in each["ports"]} - {53} == {6379}


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
        ("dealer", {"budgetStore": {"secret": "store"}}),
        ("he", {"settings": {"budget-store": "/elsewhere"}}),
        ("party0", {"pairs": 0}),
        ("he", {"image": {"digest": "latest"}}),
        ("party0", {"lanes": 0}),
    ],
)
def test_the_schema_refuses(role: str, values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        tool().rendered(role, values)
