"""See it work: a LeNet on handwritten digits, answered by every engine in turn, with each role a
process of its own over mutual TLS, and every integer compared with plaintext.

The first run trains the network (seconds) and keeps it in --work. The last line says whether all
integers agree, and so does the exit status.

With --web a page shows it instead: draw a digit in your browser, which shares it between the two
parties itself, and see the answer and what each end saw. Until Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_quant.engines import find
from secure_quant_cli.engines import exact, exact_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secure_quant.ir import Graph
    from secure_quant_cli.service import Service

__all__ = ["HELP", "configure", "run"]

HELP = "train, quantize, serve, infer by every engine, compare"

WARM_UP = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--images", type=int, default=100, metavar="N",
                        help="test images through each engine (at most 449)")  # fmt: skip
    parser.add_argument("--work", type=Path, default=Path("demo-out"), metavar="DIR",
                        help="where the trained network and the logs are kept")  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--web",
        action="store_true",
        help="serve a page on this machine to draw on, with secret sharing",
    )
    parser.add_argument("--page-port", type=int, default=8321, metavar="N",
                        help="port of loopback of that page")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 0 if it is exact, 1 if not."""
    from secure_quant_cli.checks import counts
    from secure_quant_cli.console import print_json

    counts(arguments, "images", "page_port")
    if arguments.web:
        return show_page(arguments.page_port, arguments.work)
    report = demonstrate(arguments.images, arguments.work)
    if arguments.json:
        print_json(report)
    else:
        show(report)
    return 0 if report["bit_exact"] else 1


def demonstrate(images: int, work: Path) -> dict[str, Any]:
    """The whole demonstration as plain values."""
    import torch

    from secure_quant import ir, reference
    from secure_quant.quantizer import zoo
    from secure_quant_cli.models import quantize_shown, trained_lenet
    from secure_quant_cli.service import serving
    from secure_quant_cli.sizes import float_bytes

    data = zoo.digits("image")
    model, cached = trained_lenet(data, work / "lenet.safetensors")
    graph = quantize_shown(model, data.train_x[:512])
    ir.save(graph, work / "lenet.sq")
    with torch.no_grad():
        floats = model(torch.from_numpy(data.test_x)).numpy()
    whole = reference.run(graph, data.test_x)
    x, labels = data.test_x[:images], data.test_y[:images]
    report: dict[str, Any] = {
        "model": graph.hash,
        "trained_now": not cached,
        "images": len(x),
        "test_images": len(data.test_x),
        "float_bytes": float_bytes(graph),
        "int8_bytes": (work / "lenet.sq").stat().st_size,
        "engines": {
            "float": {
                "accuracy_all": zoo.accuracy(floats, data.test_y),
                "accuracy": zoo.accuracy(floats[: len(x)], labels),
            },
            "int8": {
                "accuracy_all": zoo.accuracy(whole, data.test_y),
                "accuracy": zoo.accuracy(whole[: len(x)], labels),
                "latency_ms_median": _reference_latency(graph, x),
            },
        },
    }
    with (
        tempfile.TemporaryDirectory(prefix="secure-quant-") as folder,
        serving(graph, Path(folder), engines=exact_names(), logs=work / "logs") as service,
    ):
        for name in exact_names():
            report["engines"][name] = _infer(graph, service, name, x, labels)
    report["bit_exact"] = all(report["engines"][name]["mismatches"] == 0 for name in exact_names())
    return report


def show_page(port: int, work: Path) -> int:
    """Serve the page and the roles behind it until interrupted."""
    import asyncio

    from secure_quant.quantizer import zoo
    from secure_quant_cli import web_demo
    from secure_quant_cli.checks import free_ports_at
    from secure_quant_cli.cluster import free_ports
    from secure_quant_cli.models import quantize_shown, trained_lenet
    from secure_quant_cli.service import serving
    from secure_quant_server.common import make_token

    # What is missing or taken is said before anything is trained.
    importlib.import_module("aiohttp")
    free_ports_at("--page-port", f"127.0.0.1:{port}", 1)
    data, small = zoo.digits("image"), zoo.digits("flat")
    model, _ = trained_lenet(data, work / "lenet.safetensors")
    graph = quantize_shown(model, data.train_x[:512])
    token, line = make_token("page")
    with tempfile.TemporaryDirectory(prefix="secure-quant-") as folder:
        (Path(folder) / "tokens").write_text(f"{line}\n")
        targets = [f"127.0.0.1:{each}" for each in free_ports(2)]
        told = ["--http-plaintext", "--tokens", f"{folder}/tokens",
                "--http-origins", ",".join(web_demo.origins(port))]  # fmt: skip
        options = {
            f"party{party}": ["--http-listen", target, *told]
            for party, target in enumerate(targets)
        }
        page = web_demo.Page(
            graph, [f"http://{target}" for target in targets], token,
            web_demo.one_of_each(small.test_x, small.test_y),
        )  # fmt: skip

        async def until_interrupted() -> None:
            ready = asyncio.Event()
            task = asyncio.create_task(web_demo.serve(page, port, ready))
            done, _ = await asyncio.wait(
                {task, asyncio.create_task(ready.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
            if task not in done:
                print(f"open http://127.0.0.1:{port} in a browser (Ctrl-C ends it)", flush=True)
            await task

        with serving(graph, Path(folder), engines=["mpc"], logs=work / "logs", options=options):
            asyncio.run(until_interrupted())
    return 0


def _reference_latency(graph: Graph, x: NDArray[np.float32]) -> float:
    import time

    from secure_quant import reference

    times = []
    for image in x[:20]:
        start = time.perf_counter()
        reference.run(graph, image[None])
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _infer(
    graph: Graph, service: Service, engine: str, x: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Any]:
    """Every image alone through one engine. Under HE the client sees each layer's integers and all
    of them are compared; under secret sharing only the output is ever opened."""
    from secure_quant import reference
    from secure_quant.quantizer import zoo
    from secure_quant_cli.comparison import mismatches
    from secure_quant_cli.console import progress
    from secure_quant_cli.service import timed

    infer = service.traced(engine)
    images = reference.quantize_input(graph, x)
    latencies, answers = [], []
    compared = wrong = 0
    with progress(f"{len(x)} images, {_title(engine)}") as line:
        for i in range(-WARM_UP, len(images)):
            q = images[i % len(images)][None]
            made, took = timed(infer, q)
            truth = reference.trace(graph, q)
            for name in made.keys() - {graph.input.name}:
                compared += truth[name].size
                wrong += mismatches(truth[name], made[name])
            if i >= 0:
                latencies.append(took)
                answers.append(reference.dequantize(graph, made[graph.output.name]))
                line.part(len(latencies), len(images))
    stats = service.clients[engine].infer_int8_with_stats(images[:1]).stats
    return {
        "accuracy": zoo.accuracy([answer[0] for answer in answers], labels),
        "compared": compared,
        "mismatches": wrong,
        "latency_ms_median": statistics.median(latencies),
        "bytes_sent": exact(engine).bytes_sent(stats),
    }


PLAIN = {"float": "float32", "int8": "int8 in plaintext"}


def _title(name: str) -> str:
    return PLAIN.get(name) or find(name).title


def show(report: dict[str, Any]) -> None:
    """The report as tables; the last line says whether it is exact."""
    from secure_quant_cli.console import human_bytes, paint, ratio, table

    stored, floats = report["int8_bytes"], report["float_bytes"]
    images, whole = report["images"], report["test_images"]
    print("\nLeNet on handwritten digits, 3×32×32, one image at a time, mutual TLS throughout")
    print(f"model size: float32 {human_bytes(floats)}, int8 file {human_bytes(stored)} "
          f"({ratio(stored, floats)} of it)")  # fmt: skip
    print(f"model hash: {report['model']}\n")
    print(table(
        ("", f"accuracy on {images}", f"on all {whole}", "integers that differ", "latency, median"),
        [_row(name, engine) for name, engine in report["engines"].items()],
    ))  # fmt: skip
    print()
    rows = [
        (_title(name) if first == 0 else "", sender, human_bytes(sent["online"]),
         human_bytes(sent["offline"]))
        for name in exact_names()
        for first, (sender, sent) in enumerate(report["engines"][name]["bytes_sent"].items())
    ]  # fmt: skip
    header = ("bytes sent for one image", "by", "online", "made ahead")
    print(table(header, rows, left=2))
    verdict = paint("yes", "green") if report["bit_exact"] else paint("NO", "red")
    print(f"\nbit-exact: {verdict}")


def _row(name: str, engine: dict[str, Any]) -> tuple[str, ...]:
    from secure_quant_cli.console import milliseconds

    differ = "–"
    if "compared" in engine:
        differ = f"{engine['mismatches']} of {engine['compared']:,}"
    everywhere = f"{engine['accuracy_all']:.2%}" if "accuracy_all" in engine else "–"
    latency = milliseconds(engine.get("latency_ms_median"))
    return (_title(name), f"{engine['accuracy']:.2%}", everywhere, differ, latency)
