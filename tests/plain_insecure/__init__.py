"""An engine that protects nothing: the server reads every input. For tests, and to be copied.

It goes every way that an engine goes, through the same registry, and is what a new engine starts
from: ``model.py`` (plan, bundles, both ends without I/O), ``server.py``, ``client.py``,
``commands.py``, and this row. No package of ours names it. It is an engine only inside
``registered(ENGINE)``, which a test or ``python -m plain_insecure`` says; everywhere else its name,
its role, its certificate and its bundles are refused.
"""

from __future__ import annotations

from secure_quant.engines import Engine, Role

__all__ = ["ENGINE"]

ENGINE = Engine(
    name="plain-insecure",
    title="no protection at all",
    package="numpy",
    extra="",
    spec="tests/plain_insecure/SPEC.md",
    protects=False,
    roles=(
        Role(
            name="plain-insecure",
            title="server that reads all inputs",
            help="for tests: reads every input",
            bundle="server",
            options="plain_insecure.server:PlainOptions",
            start="plain_insecure.commands:start",
            model_of="plain_insecure.commands:model_of",
        ),
    ),
    called=("plain-insecure",),
    split="plain_insecure.model:split",
    plan="plain_insecure.model:plan",
    client="plain_insecure.client:PlainInsecureClient",
    aio_client="plain_insecure.client:AsyncPlainInsecureClient",
    commands="plain_insecure.commands:COMMANDS",
)
