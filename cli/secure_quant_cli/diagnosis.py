"""What ``doctor`` looks at. Each check yields findings; none of them raises for what it finds."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from secure_quant.engines import Engine, engines, resolved, roles
from secure_quant.errors import SecureQuantError

if TYPE_CHECKING:
    from secure_quant.transport import Security

__all__ = ["Deployment", "Finding", "examine"]

WARN_DAYS = 30
CPU_FEATURES = ("aes", "avx2")
PROXIES = ("grpc_proxy", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")
OF_CRYPTEN = {"torch", "onnx", "omegaconf", "pyyaml"}
"""What a host without CrypTen does not need."""
UNSYNCHRONISED = 5
"""TIME_ERROR of adjtimex(2)."""


@dataclass(frozen=True)
class Finding:
    """mend: what to do about it, unless it is fine."""

    state: Literal["ok", "warn", "fail"]
    check: str
    found: str
    mend: str | None = None


@dataclass(frozen=True)
class Deployment:
    """roles: to be served here. targets: (role, host:port) of further servers."""

    config: Path
    roles: tuple[str, ...]
    targets: tuple[tuple[str, str], ...] = ()
    timeout: float = 3.0


@dataclass
class _Role:
    name: str
    told: argparse.Namespace
    security: Security | None = None


def examine(deployment: Deployment) -> Iterator[Finding]:
    """Everything, what others rest on first."""
    told, findings = _settings(deployment)
    yield from findings
    yield from _versions(told)
    yield from _machine()
    for role in told.values():
        yield from _certificates(role)
    yield from _bundles(told)
    for role in told.values():
        yield from _tokens(role)
        yield from _store(role)
    yield from _ports(told)
    yield from _reach(deployment, told)


def _settings(deployment: Deployment) -> tuple[dict[str, _Role], list[Finding]]:
    from secure_quant_cli.serve import check
    from secure_quant_cli.settings import resolve, settings_of

    told: dict[str, _Role] = {}
    findings: list[Finding] = []
    for name in deployment.roles:
        arguments = argparse.Namespace(role=name, config=deployment.config)
        for each in settings_of(name):
            setattr(arguments, each.name, None)
        try:
            resolve(arguments)
            check(arguments)
        except SecureQuantError as error:
            mend = f"correct [{name}] in {deployment.config.name}; see docs/operating.md"
            findings.append(Finding("fail", f"{name}: settings", str(error), mend))
            continue
        told[name] = _Role(name, arguments)
        findings.append(Finding("ok", f"{name}: settings", "complete"))
    return told, findings


def _versions(told: Mapping[str, _Role]) -> Iterator[Finding]:
    from secure_quant_cli.extras import ADD_CRYPTEN

    wanted = {"server"}
    for role in told.values():
        wanted |= {each.extra for each in _engines_of(role.name)}
    lean = all(getattr(role.told, "border", "none") == "none" for role in told.values())
    for line in metadata.requires("secure-quant") or ():
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"](\w+)['\"]", line)
        if name is None or (extra and extra[1] not in wanted) or "platform" in line:
            continue
        if lean and name[0].lower() in OF_CRYPTEN:
            continue
        yield from _version(name[0], line, extra[1] if extra else None)
    if not lean and _installed("crypten") is None:
        mend = f'{ADD_CRYPTEN}, or border = "none" for the parties'
        yield Finding("fail", "crypten", "not installed", mend)
    yield Finding("ok", "secure-quant", _installed("secure-quant") or "from a checkout")


def _engines_of(role: str) -> list[Engine]:
    return [each for each in engines() if role in (own.name for own in each.roles)]


def _version(name: str, requirement: str, extra: str | None) -> Iterator[Finding]:
    """A finding only where something is wrong."""
    from secure_quant_cli.extras import how_to_install

    found = _installed(name)
    mend = how_to_install(extra) if extra else "install secure-quant again"
    if found is None:
        yield Finding("fail", name, "not installed", mend)
        return
    with suppress(ImportError):  # without packaging, being there must do
        from packaging.requirements import Requirement

        needed = Requirement(requirement).specifier
        if not needed.contains(found, prereleases=True):
            yield Finding("fail", name, f"{found}, needed {needed}", mend)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[Finding]:
    cpu = _cpu_flags()
    lacking = [each for each in CPU_FEATURES if cpu and each not in cpu]
    if lacking:
        mend = "inference will be several times slower: use another host, or pass the host's CPU on"
        yield Finding("warn", "CPU", f"without {', '.join(lacking)}", mend)
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        known = ", ".join(CPU_FEATURES) if cpu else "features unknown"
        yield Finding("ok", "CPU", f"{cores} cores, {known}")
    state = _clock_state()
    if state == UNSYNCHRONISED:
        mend = "run chronyd or systemd-timesyncd: certificates hold by the clock"
        yield Finding("warn", "clock", "not synchronised", mend)
    elif state is not None:
        yield Finding("ok", "clock", "synchronised")
    with suppress(ImportError):
        import resource

        if resource.getrlimit(resource.RLIMIT_CORE)[0] != 0:
            mend = "ulimit -c 0: a dump would hold keys and shares"
            yield Finding("warn", "core dumps", "on", mend)
    for name in PROXIES:
        if os.environ.get(name):
            yield Finding("warn", name, "set, and not used", "peers are reached directly")
            break


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    return flags if "sse2" in flags else set()  # the names above are those of x86


def _clock_state() -> int | None:
    """Of the kernel's clock, by adjtimex(2) in its mode of asking; None where there is none."""
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return None
    state: int = adjtimex(ctypes.create_string_buffer(512))  # struct timex, modes = 0
    return None if state < 0 else state


def _certificates(role: _Role) -> Iterator[Finding]:
    from datetime import UTC, datetime

    from secure_quant.transport import InsecurePlaintext, Tls, expiry, require_role
    from secure_quant_cli.tls_options import tls_from

    check = f"{role.name}: certificate"
    try:
        role.security = tls_from(role.told, role.name)
        require_role(role.security, role.name)
    except SecureQuantError as error:
        role.security = None
        yield Finding("fail", check, str(error), "secure-quant certs; each role its own files")
        return
    if isinstance(role.security, InsecurePlaintext):
        mend = 'tls = "DIR", unless another layer protects every link'
        yield Finding("warn", check, "none: plaintext", mend)
        return
    end = expiry(role.security.load())
    days = (end - datetime.now(UTC)).days
    found = f"of {role.name}, until {end:%F}"
    if days < WARN_DAYS:
        mend = "issue another and replace the files; no restart is needed"
        yield Finding("warn", check, f"{found}, {days} days", mend)
    else:
        yield Finding("ok", check, found)
    key = role.security.key if isinstance(role.security, Tls) else b""
    if not isinstance(key, bytes) and Path(key).stat().st_mode & 0o077:
        yield Finding("warn", f"{role.name}: key", "others may read it", f"chmod 600 {key}")


def _bundles(told: Mapping[str, _Role]) -> Iterator[Finding]:
    hashes: dict[str, frozenset[str]] = {}
    for role in told.values():
        found: set[str] = set()
        for path in role.told.bundle:
            check = f"{role.name}: {Path(path).name}"
            try:
                model = resolved(roles()[role.name].model_of)(role.name, Path(path).read_bytes())
            except OSError as error:
                yield Finding("fail", check, error.strerror or "unreadable", "copy it here")
            except SecureQuantError as error:
                mend = f"give {role.name} what `secure-quant split` wrote for it"
                yield Finding("fail", check, str(error), mend)
            else:
                found.add(model)
                yield Finding("ok", check, f"model {model[:12]}")
        hashes[role.name] = frozenset(found)
    for engine in engines():
        theirs = {role.name: hashes[role.name] for role in engine.roles if role.name in hashes}
        if len(set(theirs.values())) > 1:
            text = "; ".join(
                f"{name} {' '.join(sorted(h[:12] for h in each)) or 'none'}"
                for name, each in theirs.items()
            )
            mend = f"give {engine.together} the bundles of one split"
            yield Finding("fail", f"models of {engine.together}", text, mend)
        elif len(theirs) > 1:
            yield Finding("ok", f"models of {engine.together}", "the same")


def _tokens(role: _Role) -> Iterator[Finding]:
    if getattr(role.told, "tokens", None) is None:
        return
    from secure_quant_server.common.access import Tokens

    try:
        Tokens.from_file(role.told.tokens)
    except SecureQuantError as error:
        mend = f"secure-quant make-token NAME --file {role.told.tokens}"
        yield Finding("fail", f"{role.name}: tokens", str(error), mend)
    else:
        yield Finding("ok", f"{role.name}: tokens", "a file of tokens")


def _ports(told: Mapping[str, _Role]) -> Iterator[Finding]:
    """Of roles that are to run on this host, two at one port."""
    taken: list[tuple[str, str, range]] = []  # by whom, host, ports
    for role in told.values():
        for setting, where in _listens(role):
            host, _, port = where.rpartition(":")
            run = _run(role, setting)
            own = range(int(port), int(port) + run) if int(port) else range(0)
            for other, there, ports in taken:
                both = host == there or {host, there} & {"", "0.0.0.0", "[::]"}  # noqa: S104
                if both and ports.start < own.stop and own.start < ports.stop:
                    mend = "a port of its own in the role's table, or hosts of their own"
                    found = f"{where} is also {other}"
                    yield Finding("fail", f"{role.name}: {setting}", found, mend)
                    break
            taken.append((f"{role.name}'s {setting}", host, own))


def _listens(role: _Role) -> Iterator[tuple[str, str]]:
    """Settings that say where the role listens, and the address."""
    for setting in ("listen", "link_listen", "http_listen", "metrics"):
        where = getattr(role.told, setting, None)
        if where is not None:
            yield setting, f"127.0.0.1:{where}" if where.isdecimal() else where


def _run(role: _Role, setting: str) -> int:
    """How many ports on from the first are its own."""
    lanes = getattr(role.told, "lanes", 1)
    return lanes if setting == "link_listen" else 1


def _store(role: _Role) -> Iterator[Finding]:
    """Where a role keeps budgets that others share with it."""
    if getattr(role.told, "budget_store", None) is None:
        return
    import asyncio

    from secure_quant_cli.extras import how_to_install
    from secure_quant_server.common.shared_budgets import why_away

    check = f"{role.name}: store of budgets"
    mend = "is it running, is the URL right? what its user may do: docs/operating.md, Budgets"
    try:
        reason = asyncio.run(why_away(role.told.budget_store))
    except SecureQuantError as error:
        yield Finding("fail", check, str(error), mend)
    except ModuleNotFoundError:
        yield Finding("fail", check, "redis is not installed", how_to_install("budgets"))
    else:
        if reason is None:
            yield Finding("ok", check, "budgets can be charged")
        else:
            yield Finding("fail", check, reason, mend)


def _reach(deployment: Deployment, told: Mapping[str, _Role]) -> Iterator[Finding]:
    security = next((role.security for role in told.values() if role.security is not None), None)
    for role in told.values():
        here = _dialled(role.told.listen)
        if role.security is not None and here is not None:
            yield from _ask(role.name, here, role.security, deployment.timeout, ours=True)
        for each in (each for each in roles()[role.name].addresses if not each.listens):
            there = getattr(role.told, each.setting)
            if each.of not in roles():
                yield _connect(f"{role.name}: {each.of}", there, deployment.timeout)
            elif role.security is not None:
                yield from _ask(each.of, there, role.security, deployment.timeout, by=role.name)
    for name, address in deployment.targets:
        if security is not None:
            yield from _ask(name, address, security, deployment.timeout)


def _ask(
    role: str, address: str, security: Security, timeout: float, *, ours: bool = False, by: str = ""
) -> Iterator[Finding]:
    """ours: it is to be served here, and perhaps is not yet."""
    from secure_quant_cli.health import asked

    check = f"{by + ': ' if by else ''}{role} at {address}"
    try:
        serves = asked(address, role, security, timeout)
    except SecureQuantError as error:
        if ours:
            yield Finding("warn", check, "not running", f"secure-quant serve {role} --config ...")
            return
        mend = "is it running, is the address right, does a firewall let this host through?"
        if any(word in str(error).lower() for word in ("handshake", "certificate", "verif")):
            mend = "both ends need certificates of one authority, and each its role's own"
        yield Finding("fail", check, str(error), mend)
        return
    if serves:
        yield Finding("ok", check, "serving")
    else:
        mend = "look into its log: it waits for another role"
        yield Finding("warn", check, "runs and does not serve", mend)


def _connect(check: str, address: str, timeout: float) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except (OSError, ValueError) as error:
        mend = "is party 1 running, is the address right, does a firewall let this host through?"
        return Finding("fail", f"{check} at {address}", str(error), mend)
    return Finding("ok", f"{check} at {address}", "reached")


def _dialled(listen: str) -> str | None:
    """Where a server that listens there is reached from this host."""
    host, _, port = listen.rpartition(":")
    if port == "0":
        return None
    local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}  # noqa: S104
    return f"{local.get(host, host)}:{port}"
