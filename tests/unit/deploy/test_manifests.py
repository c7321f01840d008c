"""Every command in the manifests is one that the real command line takes, and every container is
hardened as SECURITY.md expects."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from secure_quant import __version__
from secure_quant.engines import roles
from secure_quant_cli.main import build_parser

DEPLOY = Path(__file__).parents[3] / "deploy"
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
DOCKERFILES = sorted(DEPLOY.glob("docker/*.Dockerfile"))
ROLES = {"dealer", "party0", "party1", "he", "onehost"}
ONE_SERVER = {"he", "onehost"}
"""Their bundle is server.sqb."""


def documents() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def deployments() -> list[dict[str, Any]]:
    return [each for each in documents() if each["kind"] in ("Deployment", "StatefulSet")]


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"])


def commands() -> Iterator[Any]:
    """Argument lists after ``secure-quant``; the images' entry point is ``secure-quant serve``."""
    for deployment in deployments():
        one = container(deployment)
        yield pytest.param(["serve", *one["args"]], id=f"kubernetes-{one['name']}")
        for probe in ("startupProbe", "readinessProbe"):
            program, *rest = one[probe]["exec"]["command"]
            assert program == "secure-quant"
            yield pytest.param(rest, id=f"kubernetes-{one['name']}-{probe}")
    for name, service in compose().items():
        yield pytest.param(["serve", *service["command"]], id=f"compose-{name}")
        kind, program, *rest = service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "secure-quant")
        yield pytest.param(rest, id=f"compose-{name}-health")


@pytest.mark.parametrize("command", list(commands()))
def test_commands_parse(command: list[str]) -> None:
    arguments = build_parser().parse_args(command)
    assert str(arguments.tls) == "/certs"


def test_each_role_is_deployed_once() -> None:
    assert {container(each)["name"] for each in deployments()} == ROLES
    assert set(compose()) == ROLES


@pytest.mark.parametrize("deployment", deployments(), ids=lambda each: each["metadata"]["name"])
def test_containers_are_hardened(deployment: dict[str, Any]) -> None:
    pod, one = deployment["spec"]["template"]["spec"], container(deployment)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"limits", "requests"} <= set(one["resources"])
    assert all("latest" not in one["image"] and ":" in one["image"] for one in [one])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_install_what_is_depended_on_before_the_source(path: Path) -> None:
    text = path.read_text()
    assert text.index("-r requirements.txt") < text.index("COPY secure_quant")
    assert "pip install --no-deps ." in text
    assert "rm -rf" not in text
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert f'org.opencontainers.image.version="{__version__}"' in text


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((DEPLOY / "helm" / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_every_value_of_the_chart_is_in_its_schema() -> None:
    schema = json.loads((DEPLOY / "helm" / "values.schema.json").read_text())
    values = yaml.safe_load((DEPLOY / "helm" / "values.yaml").read_text())

    def compared(values: dict[str, Any], schema: dict[str, Any], where: str) -> None:
        known = schema["properties"]
        assert set(values) <= set(known), where
        for name, value in values.items():
            if isinstance(value, dict) and "properties" in known[name]:
                compared(value, known[name], f"{where}.{name}")

    compared(values, schema, "values")
    assert set(schema["properties"]) - set(values) == {"global"}
    assert set(schema["properties"]["role"]["enum"]) == ROLES == set(roles())


def test_images_are_of_this_version() -> None:
    named = [container(each)["image"] for each in deployments()]
    named += [service["image"] for service in compose().values()]
    named += re.findall(r" -t (\S+)", (DEPLOY / "README.md").read_text())
    assert len(named) >= 2 * len(ROLES) + len(DOCKERFILES)
    assert {image.rpartition(":")[2] for image in named} == {__version__}


def test_only_its_own_secrets_reach_a_role() -> None:
    for deployment in deployments():
        role = container(deployment)["name"]
        arguments = build_parser().parse_args(["serve", *container(deployment)["args"]])
        expected = "server" if role in ONE_SERVER else role
        assert [path.name for path in arguments.bundle] == [f"{expected}.sqb"]
    for role, service in compose().items():
        mounted = [each for each in service["volumes"] if each.endswith(":ro")]
        names = [Path(volume.split(":")[1]).name for volume in mounted]
        bundle = "server.sqb" if role in ONE_SERVER else f"{role}.sqb"
        assert sorted(names) == sorted([bundle, "ca.pem", f"{role}.pem", f"{role}.key"])


def test_everything_is_denied_by_default() -> None:
    policies = [each for each in documents() if each["kind"] == "NetworkPolicy"]
    closed = {
        each["metadata"]["namespace"]
        for each in policies
        if each["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    }
    assert closed == {f"secure-quant-{role}" for role in ROLES}


def test_who_may_reach_whom() -> None:
    """(caller, callee) over all policies; None is any client."""
    opened = set()
    for policy in documents():
        if policy["kind"] != "NetworkPolicy" or "ingress" not in policy["spec"]:
            continue
        callee = policy["metadata"]["name"]
        for rule in policy["spec"]["ingress"]:
            for source in rule.get("from", [None]):
                labels = source and source["namespaceSelector"]["matchLabels"]
                opened.add((labels and next(iter(labels.values())), callee))
    assert opened == {
        (None, "he"), (None, "onehost"), (None, "party0"), (None, "party1"),
        ("party0", "party1"), ("party0", "dealer"), ("party1", "dealer"),
        *(("monitoring", role) for role in ROLES),
    }  # fmt: skip


def test_servers_listen_where_services_point() -> None:
    ports = {
        (one["metadata"]["namespace"], port["name"]): port["containerPort"]
        for one in deployments()
        for port in container(one)["ports"]
    }
    for service in (each for each in documents() if each["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert ports[service["metadata"]["namespace"], port["targetPort"]] == port["port"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_a_user_and_copy_what_exists(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert "USER 10001:10001" in lines
    sources = [name for line in lines if line.startswith("COPY ") and "--from" not in line
               for name in line.split()[1:-1]]  # fmt: skip
    assert sources
    assert all((DEPLOY.parent / source).exists() for source in sources)


@pytest.mark.parametrize("name", ["party", "he", "onehost"])
def test_server_images_cannot_open_secrets(name: str) -> None:
    text = (DEPLOY / "docker" / f"{name}.Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    assert ["server"] in copied
    assert not any(name.startswith((".", "client")) for names in copied for name in names)
