"""Leveled models in the commands: made by ``quantize --mode leveled``, told from integer models by
what their file says, split with ``--engine he-leveled``, and verified against an error bound.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_quant_cli.engines import OwnModels

if TYPE_CHECKING:
    from secure_quant.he.leveled import LeveledModel

__all__ = ["COMMANDS"]


def load(path: Path) -> LeveledModel:
    """Raises ConfigError for an integer model, MalformedModel and its kin, OSError."""
    from secure_quant.errors import ConfigError
    from secure_quant.he.leveled import LeveledModel
    from secure_quant.he.leveled.model import FORMAT
    from secure_quant.ir.container import read_tensors

    data = path.read_bytes()
    if read_tensors(data)[1].get("format", "") != FORMAT:
        hint = "secure-quant quantize --mode leveled"
        raise ConfigError(f"{path}", got="an integer model", expected="a leveled one", hint=hint)
    return LeveledModel.decode(data)


def quantize(arguments: argparse.Namespace) -> int:
    """``quantize --mode leveled``: write the model file and say what its plan promises."""
    from secure_quant.he.leveled import LeveledModel, plan
    from secure_quant.quantizer.leveled import quantize_leveled
    from secure_quant_cli.arrays import read_array
    from secure_quant_cli.console import print_json, progress
    from secure_quant_cli.models import warned
    from secure_quant_cli.owner_code import owner_model

    data = read_array(arguments.calibration)
    owned = owner_model(arguments.model, arguments.weights, data)
    with warned(), progress("quantizing for one round trip"):
        layers = quantize_leveled(owned, data, arguments.max_error)
        model = LeveledModel.of(*layers)
        made = plan(model)  # refuse now what could not be served
    with os.fdopen(os.open(arguments.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
        f.write(model.encode())
    found = {"hash": model.hash, "degree": made.degree, "error_bound": made.error_bound}
    if arguments.json:
        print_json(found)
    else:
        print(f"{arguments.out}: {len(model.layers)} linear layers, degree {made.degree}, "
              f"outputs off by at most {made.error_bound:.2g}")  # fmt: skip
        print(f"hash {model.hash}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """What the file holds and what its plan promises, for ``--batch`` samples."""
    from secure_quant.he.leveled import plan
    from secure_quant.he.leveled.wire import key_bytes, request_bytes, response_bytes
    from secure_quant_cli.console import human_bytes, print_json, table

    model = load(arguments.model)
    made = plan(model)
    found = {
        "hash": model.hash,
        "bytes": arguments.model.stat().st_size,
        "widths": list(made.public.widths),
        "degree": made.degree,
        "error_bound": made.error_bound,
        "batch": arguments.batch,
        "bytes_up": arguments.batch * request_bytes(made),
        "bytes_down": arguments.batch * response_bytes(made),
        "key_bytes_up": key_bytes(made),
    }
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        ("hash", model.hash),
        ("size", human_bytes(found["bytes"])),
        ("widths", " → ".join(map(str, made.public.widths))),
        ("degree", made.degree),
        ("outputs off by at most", f"{made.error_bound:.2g}"),
        (f"up, for a batch of {arguments.batch}", human_bytes(found["bytes_up"])),
        ("down", human_bytes(found["bytes_down"])),
        ("evaluation keys, once a session", human_bytes(found["key_bytes_up"])),
    ]
    print(table(("leveled model", ""), rows, left=2))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Encrypted inference in this process against float64: the largest error beside the bound.
    0 if no output is off by more. Approximate: never called bit-exact."""
    from secure_quant.errors import ConfigError
    from secure_quant_cli.arrays import read_array
    from secure_quant_cli.console import print_json

    if arguments.engines or arguments.float or arguments.html:
        raise ConfigError("options", got="--engines, --float or --html", expected="none of them",
                          hint="a leveled model is compared with its float64 meaning")  # fmt: skip
    model = load(arguments.model)
    x = read_array(arguments.input)[: arguments.limit]
    report = {"model": model.hash, "samples": len(x), "bit_exact": False, **_compare(model, x)}
    if arguments.json:
        print_json(report)
    else:
        print(f"model {model.hash}, {len(x)} samples, approximate (leveled CKKS)")
        print(f"largest error  {report['error_max']:.3g}")
        print(f"bound          {report['error_bound']:.3g}")
        print(f"within bound: {'yes' if report['within_bound'] else 'NO'}")
    return 0 if report["within_bound"] else 1


def _compare(model: LeveledModel, x: Any) -> dict[str, Any]:
    import numpy as np

    from secure_quant.he.leveled import plan
    from secure_quant.he.leveled.evaluate import LeveledEvaluator
    from secure_quant_cli.console import progress
    from secure_quant_client.leveled.keys import LeveledKeys

    made = plan(model)
    truth, largest = model.reference(x), 0.0
    with progress(f"he-leveled on {len(x)} samples") as line:
        keys = LeveledKeys(made)
        session = LeveledEvaluator(model, made).open(keys.evaluation_keys())
        for i, request in enumerate(keys.encrypt(x)):
            y = keys.decrypt(session.evaluate(request))
            largest = max(largest, float(np.abs(y - truth[i]).max()))
            line.part(i + 1, len(x))
    return {
        "error_max": largest,
        "error_bound": made.error_bound,
        "within_bound": largest <= made.error_bound,
    }


COMMANDS = OwnModels(load=load, quantize=quantize, inspect=inspect, verify=verify)
