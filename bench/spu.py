"""SecretFlow SPU on the same networks, by hand, in an environment of its own.

    python -m venv spu-env && spu-env/bin/pip install spu==0.9.5
    spu-env/bin/python bench/spu.py --model lenet --batch 1 --runs 9

One process per party over loopback (plain TCP, brpc), secret input and secret weights, the clock
between two barriers, compilation and secret sharing of the weights left out. Prints one JSON
object per protocol. SEMI2K draws its correlated randomness at the first party, which is not
secure against that party; ABY3 needs three parties; Cheetah needs no dealer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# This file would shadow the package it measures.
sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parent]

PROTOCOLS = {"SEMI2K": 2, "ABY3": 3, "CHEETAH": 2}


def lenet(batch: int) -> tuple[Callable[..., Any], list[np.ndarray]]:
    import jax
    from jax import lax

    rng = np.random.default_rng(3)

    def parameters(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    shapes = [(6, 3, 5, 5), (16, 6, 5, 5), (400, 120), (120, 84), (84, 10)]
    arrays = [parameters(batch, 3, 32, 32), *(parameters(*shape) for shape in shapes)]
    arrays += [parameters(6, 1, 1), parameters(16, 1, 1), *(parameters(n) for n in (120, 84, 10))]

    def pool(x: Any) -> Any:
        return lax.reduce_window(x, -np.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    def net(x: Any, *p: Any) -> Any:
        for kernel, bias in ((p[0], p[5]), (p[1], p[6])):
            x = lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=("NCHW", "OIHW", "NCHW")
            )
            x = pool(jax.nn.relu(x + bias))
        x = x.reshape(batch, 400)
        x = jax.nn.relu(x @ p[2] + p[7])
        x = jax.nn.relu(x @ p[3] + p[8])
        return x @ p[4] + p[9]

    return net, arrays


def mlp(batch: int) -> tuple[Callable[..., Any], list[np.ndarray]]:
    import jax

    rng = np.random.default_rng(3)
    shapes = [(batch, 64), (64, 128), (128,), (128, 10), (10,)]
    arrays = [(rng.standard_normal(shape) * 0.1).astype(np.float32) for shape in shapes]

    def net(x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
        return jax.nn.relu(x @ w1 + b1) @ w2 + b2

    return net, arrays


def transformer(batch: int) -> tuple[Callable[..., Any], list[np.ndarray]]:
    """One post-norm encoder layer: sequence 16, width 64, 4 heads, feed-forward 128, GELU."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(3)
    shapes = [(batch, 16, 64), (64, 192), (64, 64), (64, 128), (128, 64)]
    arrays = [(rng.standard_normal(shape) * 0.1).astype(np.float32) for shape in shapes]

    def norm(x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    def net(x: Any, qkv: Any, out: Any, up: Any, down: Any) -> Any:
        q, k, v = jnp.split((x @ qkv).reshape(batch, 16, 12, 16).transpose(0, 2, 1, 3), 3, axis=1)
        weights = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / 4.0, axis=-1)
        mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, 16, 64)
        x = norm(x + mixed @ out)
        return norm(x + jax.nn.gelu(x @ up) @ down)

    return net, arrays


MODELS = {"lenet": lenet, "mlp": mlp, "transformer": transformer}


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def party(
    rank: int,
    ports: list[int],
    protocol: str,
    model: str,
    batch: int,
    runs: int,
    bound: bool,
    results: Any,
) -> None:
    from spu import api, libspu
    from spu.utils import frontend

    if bound:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(
            0, cores[rank * len(cores) // len(ports) :][: len(cores) // len(ports)]
        )
    config = libspu.RuntimeConfig(
        protocol=getattr(libspu.ProtocolKind, protocol), field=libspu.FieldType.FM64
    )
    net, arrays = MODELS[model](batch)
    names = [f"in{i}" for i in range(len(arrays))]
    secret = libspu.Visibility.VIS_SECRET
    executable, _ = frontend.compile(
        frontend.Kind.JAX, net, arrays, {}, names, [secret] * len(arrays), lambda _: ["out0"]
    )
    description = libspu.link.Desc()
    for i, port in enumerate(ports):
        description.add_party(f"p{i}", f"127.0.0.1:{port}")
    link = libspu.link.create_brpc(description, rank)
    runtime = api.Runtime(link, config)
    io = api.Io(len(ports), config)
    # The first party shares the test data for all; its cost is outside the clock.
    for name, array in zip(names, arrays, strict=True):
        shares = io.make_shares(array, secret)
        gathered = results.setdefault(name, shares) if rank == 0 else _wait(results, name)
        runtime.set_var(name, gathered[rank])
    times = []
    for turn in range(runs + 1):
        link.barrier()
        start = time.perf_counter()
        runtime.run(executable)
        link.barrier()
        if turn:
            times.append((time.perf_counter() - start) * 1e3)
    if rank == 0:
        results["times"] = times


def _wait(results: Any, name: str) -> Any:
    while name not in results:
        time.sleep(0.05)
    return results[name]


def _join(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Wait for all; the others never end once one has failed, and are ended."""
    running = list(processes)
    while running:
        multiprocessing.connection.wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode is None]
        if any(process.exitcode for process in processes):
            for process in running:
                process.kill()
                process.join()
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="lenet")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument(
        "--bound", action="store_true", help="each party on cores of its own, as `bench` runs ours"
    )
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), action="append")
    arguments = parser.parse_args()
    if arguments.batch < 1 or arguments.runs < 1:
        parser.error("--batch and --runs: expected >= 1")
    if importlib.util.find_spec("spu") is None:
        parser.error("needs spu in an environment of its own: see --help")
    context = multiprocessing.get_context("spawn")
    for protocol in arguments.protocol or list(PROTOCOLS):
        ports = free_ports(PROTOCOLS[protocol])
        with context.Manager() as manager:
            results = manager.dict()
            bound = arguments.bound and PROTOCOLS[protocol] <= len(os.sched_getaffinity(0))
            common = (
                ports, protocol, arguments.model, arguments.batch, arguments.runs, bound, results,
            )  # fmt: skip
            processes = [
                context.Process(target=party, args=(rank, *common)) for rank in range(len(ports))
            ]
            for process in processes:
                process.start()
            _join(processes)
            times = results.get("times", [])
        if not times:
            raise SystemExit(f"{protocol}: a party failed")
        figures = {
            "peer": f"spu {protocol}", "model": arguments.model, "batch": arguments.batch,
            "latency_ms_median": float(np.median(times)),
            "latency_ms_p90": float(np.percentile(times, 90)),
        }  # fmt: skip
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
