"""The engines: one row each, from which commands, clients and servers are made up.

Light. What a row names by ``module:attribute`` is imported when it is used, so that a client has
no server in memory, a server no client, and nobody CrypTen who does not need it. ARCHITECTURE.md
says what an engine must bring; ``tests/unit/test_engines.py`` walks the rows and looks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from secure_quant.errors import ConfigError, InsecureRefused

__all__ = [
    "Address",
    "Engine",
    "Role",
    "engines",
    "find",
    "registered",
    "resolved",
    "roles",
    "served",
]

Dotted = str
"""``module:attribute``."""
INSECURE = "-insecure"


def resolved(name: Dotted) -> Any:
    """What stands there. Raises ModuleNotFoundError where its package is not installed."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True, kw_only=True)
class Address:
    """A setting ``host:port`` of a role, besides where it serves.

    setting  its name.
    of       the role that is dialled there, or what else listens there.
    listens  whether this role listens there itself.
    help     what it means, unless the docstring of the role's options says so.
    """

    setting: str
    of: str
    listens: bool = False
    help: str | None = None


@dataclass(frozen=True, kw_only=True)
class Role:
    """A server of an engine.

    name       in certificates, settings and commands.
    title      in prose. help: of ``secure-quant serve``.
    bundle     of those that ``split`` makes, the one that it serves.
    options    dataclass of its settings, whose docstrings say what they mean.
    start      (what it was told, as settings say it) -> the coroutine that serves until a signal.
    check      (what it was told) -> None: what no type says; raises ConfigError. None if nothing.
    model_of   (role, a bundle's bytes) -> the model's hash. Raises MalformedModel and its kin.
    addresses  besides ``listen``.
    workers    the setting that says how many processes it has beside its own.
    without    fields of ``options`` that it does not ask.
    half       which half of the cores it has where all roles share a machine; None for no limit.
    """

    name: str
    title: str
    help: str
    bundle: str
    options: Dotted
    start: Dotted
    model_of: Dotted
    check: Dotted | None = None
    addresses: tuple[Address, ...] = ()
    workers: str | None = None
    without: frozenset[str] = frozenset()
    half: int | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A way to answer a model.

    name          behind ``--engine``.
    title         in prose.
    package       top-level module without which it does not run; extra: what installs it.
    spec          page that defines it, from the repository's root.
    roles         its servers; each dials or waits for those behind it. Engines may share one.
    either        names that ``serve`` takes for one of several roles, which one the bundle says.
    together      its roles, if several, in a word.
    called        roles that clients call, in the order of their targets.
    client_half   as a role's half, of a client that is itself a party.
    exact         equal to the reference bit for bit; else within a bound of its own.
    answers_alone a client learns the answer and nothing between, so that an output policy
                  keeps the rest from it.
    protects      a server never sees the input. An engine that does not bears it in its name.
    objectives    what its planner can spare; the first if not told.
    tiers         how well answers can hide the weights; the first if not told.
    budgeted      a plan is good for a number of samples of one client, ``calls`` of split and plan.
    file_format   of model files that it alone takes; None: integer graphs.
    mode          of ``quantize``, that makes such a file.
    split         (model, objective or tier if it has several) -> role or "client" -> bundle.
                  Raises OpNotSupported.
    plan          (model, ...) -> what it costs, before anything runs. Raises OpNotSupported.
    client        class for threads; aio_client: for asyncio.
    commands      a ``secure_quant_cli.engines.Exact``, or an ``OwnModels`` with ``file_format``.
    """

    name: str
    title: str
    package: str
    extra: str
    spec: str
    roles: tuple[Role, ...]
    either: tuple[Role, ...] = ()
    together: str = ""
    called: tuple[str, ...]
    client_half: int | None = None
    exact: bool = True
    answers_alone: bool = False
    protects: bool = True
    objectives: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    budgeted: bool = False
    file_format: str | None = None
    mode: str | None = None
    split: Dotted
    plan: Dotted
    client: Dotted
    aio_client: Dotted
    commands: Dotted

    @property
    def bundles(self) -> frozenset[str]:
        """What ``split`` makes."""
        return frozenset({"client", *(role.bundle for role in self.roles)})

    def bundles_of(
        self, model: Any, objective: str | None = None, tier: str | None = None,
        samples_per_client: int | None = None,
    ) -> dict[str, bytes]:  # fmt: skip
        """Role -> bundle, of a model as this engine takes it.

        Raises OpNotSupported where it has no exact gate for an op, ConfigError.
        """
        options: dict[str, Any] = {}
        if objective is not None:
            if objective not in self.objectives:
                expected = " or ".join(self.objectives) or "none"
                raise ConfigError(f"--objective for {self.name}", got=objective, expected=expected)
            options["objective"] = objective
        if tier is not None:
            if tier not in self.tiers:
                expected = " or ".join(self.tiers) or "none"
                raise ConfigError(f"--tier for {self.name}", got=tier, expected=expected)
            options["tier"] = tier
        if samples_per_client is not None:
            if not self.budgeted:
                name = f"--samples-per-client for {self.name}"
                raise ConfigError(name, got=samples_per_client, expected="none")
            options["calls"] = samples_per_client
        made: dict[str, bytes] = resolved(self.split)(model, **options)
        return made

    def cells_of(self, targets: Sequence[str]) -> list[list[str]]:
        """The addresses of each cell: as many as ``called``, or that many times over where those
        are several. Raises ConfigError."""
        count, given = len(self.called), len(targets)
        if not given or given % count or (count == 1 and given > 1):
            expected = f"{count}, or {count} of each cell" if count > 1 else count
            raise ConfigError(f"--target for {self.name}", got=given, expected=expected)
        return [list(targets[i : i + count]) for i in range(0, given, count)]

    def connect(self, targets: Sequence[str], *, aio: bool = False, **options: Any) -> Any:
        """A client for threads, or for asyncio. targets: ``host:port`` of each role in ``called``,
        and of each cell one after the other if there are several. Raises ConfigError."""
        cells = self.cells_of(targets)
        made = resolved(self.aio_client if aio else self.client)
        if len(cells) > 1:
            return made(cells=cells, **options)
        return made(cells[0][0] if len(self.called) == 1 else cells[0], **options)


_PEER = Address(
    setting="peer", of="party 1's link", help="party 0: HOST:PORT where party 1's link listens"
)
_LINK = Address(
    setting="link_listen", of="party 1's link", listens=True,
    help="party 1: HOST:PORT where its link listens",
)  # fmt: skip
_DEALER = Address(setting="dealer", of="dealer")


def _party(number: int | None, addresses: tuple[Address, ...], text: str) -> Role:
    which = "" if number is None else number
    return Role(
        name=f"party{which}",
        title=f"party {which}",
        help=text,
        bundle=f"party{which}",
        options="secure_quant_server.options:PartyOptions",
        start="secure_quant_cli.engines.mpc:start_party",
        check="secure_quant_cli.engines.mpc:check_party",
        model_of="secure_quant_cli.engines.mpc:model_of",
        addresses=(*addresses, _DEALER),
        workers="lanes",
        half=number,
    )


_MPC = Engine(
    name="mpc",
    title="secret sharing",
    answers_alone=True,
    package="numba",
    extra="mpc",
    spec="docs/spec/mpc.md",
    roles=(
        _party(0, (_PEER,), "the same, party 0"),
        _party(1, (_LINK,), "the same, party 1"),
        Role(
            name="dealer",
            title="dealer",
            help="correlated randomness for both parties",
            bundle="dealer",
            options="secure_quant_server.options:DealerOptions",
            start="secure_quant_cli.engines.mpc:start_dealer",
            model_of="secure_quant_cli.engines.mpc:model_of",
            without=frozenset(
                {"tokens", "budget", "budget_window_s", "budget_store", "budget_alone"}
            ),
        ),
    ),
    either=(_party(None, (_PEER, _LINK), "one of the two parties of secret sharing"),),
    together="parties and dealer",
    called=("party0", "party1"),
    objectives=("balanced", "latency", "traffic"),
    split="secure_quant.mpc.protocol.bundle:split",
    plan="secure_quant.mpc.protocol.plan:plan",
    client="secure_quant_client.mpc.client:MpcClient",
    aio_client="secure_quant_client.mpc.client:AsyncMpcClient",
    commands="secure_quant_cli.engines.mpc:COMMANDS",
)

_HE_SERVER = Role(
    name="he",
    title="HE server",
    help="linear layers on ciphertexts",
    bundle="server",
    options="secure_quant_server.options:HeOptions",
    start="secure_quant_cli.engines.he:start",
    model_of="secure_quant_cli.engines.he:model_of",
    workers="workers",
)

_HE = Engine(
    name="he",
    title="homomorphic encryption",
    package="tenseal",
    extra="he",
    spec="docs/spec/ckks.md",
    roles=(_HE_SERVER,),
    called=("he",),
    objectives=("latency", "traffic"),
    tiers=("T1", "T1-strict"),
    split="secure_quant.he.bundle:split",
    plan="secure_quant.he.plan:plan",
    client="secure_quant_client.he.client:HeClient",
    aio_client="secure_quant_client.he.client:AsyncHeClient",
    commands="secure_quant_cli.engines.he:COMMANDS",
)

_HE_LEVELED = Engine(
    name="he-leveled",
    title="leveled homomorphic encryption",
    package="tenseal",
    extra="he",
    spec="docs/spec/leveled.md",
    roles=(_HE_SERVER,),
    called=("he",),
    exact=False,
    file_format="secure-quant-leveled/1",
    mode="leveled",
    split="secure_quant.he.leveled.bundle:split",
    plan="secure_quant.he.leveled.plan:plan",
    client="secure_quant_client.leveled.client:LeveledClient",
    aio_client="secure_quant_client.leveled.client:AsyncLeveledClient",
    commands="secure_quant_cli.engines.leveled:COMMANDS",
)

_ONE_HOST = Engine(
    name="onehost",
    answers_alone=True,
    title="one host",
    package="numba",
    extra="onehost",
    spec="docs/spec/one-host.md",
    roles=(
        Role(
            name="onehost",
            title="one host",
            help="the one server, which holds the weights and sees no input",
            bundle="server",
            options="secure_quant_server.options:OneHostOptions",
            start="secure_quant_cli.engines.onehost:start",
            model_of="secure_quant_cli.engines.onehost:model_of",
            workers="workers",
            half=1,
        ),
    ),
    called=("onehost",),
    client_half=0,
    objectives=("latency", "traffic"),
    budgeted=True,
    split="secure_quant.onehost.bundle:split",
    plan="secure_quant.onehost.plan:plan",
    client="secure_quant_client.onehost.client:OneHostClient",
    aio_client="secure_quant_client.onehost.client:AsyncOneHostClient",
    commands="secure_quant_cli.engines.onehost:COMMANDS",
)

_ROWS: list[Engine] = [_MPC, _HE, _HE_LEVELED, _ONE_HOST]


def engines() -> tuple[Engine, ...]:
    """All rows."""
    return tuple(_ROWS)


def find(name: str) -> Engine:
    """The engine of that name. Raises ConfigError."""
    for each in _ROWS:
        if each.name == name:
            return each
    expected = ", ".join(each.name for each in _ROWS)
    raise ConfigError("engine", got=ascii(name[:40]), expected=expected)


def served() -> dict[str, Role]:
    """What ``serve`` takes, by name: every role, and what stands for one of several."""
    return {role.name: role for each in _ROWS for role in (*each.either, *each.roles)}


def roles() -> dict[str, Role]:
    """Every role that serves, by name; one that engines share stands once."""
    return {role.name: role for each in _ROWS for role in each.roles}


@contextmanager
def registered(engine: Engine) -> Iterator[None]:
    """``engine`` is a row while the block runs: for tests, and for trying out in one process. No
    option, setting or message adds a row.

    Raises ConfigError for a name that is taken, InsecureRefused for an engine that protects
    nothing and does not say so in its name.
    """
    if engine.protects == engine.name.endswith(INSECURE):
        expected = f"a name that ends in {INSECURE} if, and only if, it protects nothing"
        raise InsecureRefused("engine", got=engine.name, expected=expected)
    known = roles()
    for role in engine.roles:
        if known.get(role.name, role) != role or role.name == "client":
            raise ConfigError("role", got=role.name, expected="a name of its own")
    if any(each.name == engine.name for each in _ROWS):
        raise ConfigError("engine", got=engine.name, expected="a name of its own")
    _ROWS.append(engine)
    try:
        yield
    finally:
        _ROWS.remove(engine)
