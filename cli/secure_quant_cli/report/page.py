"""The page: verdict first, then plots and tables of the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_quant.engines import find
from secure_quant_cli.comparison import cost_cells
from secure_quant_cli.console import human_bytes, milliseconds, ratio
from secure_quant_cli.engines import exact
from secure_quant_cli.report import histograms, plots
from secure_quant_cli.report.style import STYLE

if TYPE_CHECKING:
    from secure_quant.ir import Graph
    from secure_quant_cli.comparison import Comparison

__all__ = ["render", "write_page"]

WITNESSES = {"reference": "plaintext reference", "onnx": "onnxruntime"}
Row = Sequence[str]


def _title(executor: str) -> str:
    return WITNESSES.get(executor) or find(executor).title


def write_page(found: Comparison, graph: Graph, path: Path) -> None:
    """One self-contained file. Raises OSError."""
    path.write_text(render(found, graph), encoding="utf-8")


def render(found: Comparison, graph: Graph) -> str:
    """The page of a comparison, the same text for the same figures."""
    report = found.report
    parts = [
        _verdict(report), _cards(report, graph), _ports(graph), _engines(report), _errors(report),
        _histograms(found), _schemes(report), _costs(report), _layers(report),
    ]  # fmt: skip
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comparison of {report['model'][:12]}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _verdict(report: dict[str, Any]) -> str:
    engines = report["engines"]
    compared = sum(found["compared"] for found in engines.values())
    wrong = sum(found["mismatches"] for found in engines.values())
    names = ", ".join(_title(engine) for engine in engines)
    if not engines:
        mark, line, more = "", "Nothing was compared", "Only the plaintext reference was run."
    elif report["bit_exact"]:
        mark, line = " exact", "✓ Bit-exact"
        more = f"All {compared:,} integers from {names} equal the plaintext reference."
    else:
        mark, line = "", f"✗ {wrong:,} of {compared:,} integers differ"
        more = "First layer that differs: " + "; ".join(
            f"{found['first_difference']} under {_title(engine)}"
            for engine, found in engines.items()
            if found["first_difference"] is not None
        )
    return (
        f"<header><h1>The same integers everywhere?</h1>\n<p>Model <code>{report['model']}</code>"
        f"</p></header>\n"
        f'<section class="verdict{mark}"><strong>{line}</strong><p>{escape(more)}</p></section>'
    )


def _cards(report: dict[str, Any], graph: Graph) -> str:
    from secure_quant_cli.sizes import weight_bytes

    stored, floats = weight_bytes(graph)
    cards = {"samples": f"{report['samples']:,}", "layers": str(len(report["layers"]))}
    beside: dict[str, str] = {}
    if floats:
        cards["stored weights"] = f"{human_bytes(stored)}"
        cards["of float32"] = ratio(stored, floats)
    for key, title in (("accuracy_float", "accuracy, float"), ("accuracy_int8", "accuracy, int8")):
        if key in report:
            cards[title] = f"{report[key]:.2%}"
            beside[title] = _interval(report[f"{key}_interval"])
    if "float_error_mean" in report:
        cards["mean error at the output"] = f"{report['float_error_mean']:.2g}"
        cards["largest"] = f"{report['float_error_max']:.2g}"
    made = "".join(
        f"<div><dt>{key}</dt><dd>{value}{beside.get(key, '')}</dd></div>"
        for key, value in cards.items()
    )
    return f'<dl class="cards">{made}</dl>'


def _interval(ends: Sequence[float]) -> str:
    return f"<small>95 % interval {ends[0]:.2%} to {ends[1]:.2%}</small>"


def _ports(graph: Graph) -> str:
    if not graph.has_ports:
        return ""
    rows = [
        [side, port.name, port.dtype, "×".join(map(str, port.asked)),
         f"{port.value.scale:.4g}", str(port.value.zero_point)]
        for side, ports in (("input", graph.input_ports), ("output", graph.output_ports))
        for port in ports
    ]  # fmt: skip
    text = "Each has integers on a grid of its own; they travel end to end, in one vector each way."
    header = ["", "name", "dtype", "shape of a sample", "scale", "zero point"]
    return _section("Inputs and outputs", text, _table(header, rows, text=3))


def _engines(report: dict[str, Any]) -> str:
    if not report["engines"]:
        return ""
    labelled = any("accuracy" in found for found in report["engines"].values())
    rows = []
    for engine, found in report["engines"].items():
        row = [
            _title(engine), "yes" if not found["mismatches"] else "NO", f"{found['compared']:,}",
            f"{found['mismatches']:,}", f"{len(found['layers'])} of {len(report['layers']) - 1}",
            found["first_difference"] or "none",
        ]  # fmt: skip
        if labelled:
            row.append(f"{found['accuracy']:.2%}" if "accuracy" in found else "–")
        rows.append(row)
    header = [
        "engine",
        "exact",
        "integers compared",
        "that differ",
        "layers seen",
        "first to differ",
    ]
    text = (
        "Every engine ran on the same int8 inputs. Under secret sharing nothing but the output is "
        "ever opened, so only that can be compared."
    )
    refused = "".join(
        f"<p>{escape(_title(engine).capitalize())} refuses this model: {escape(reason)}</p>"
        for engine, reason in report["refused"].items()
    )
    made = _table(header + ["accuracy"] * labelled, rows, text=2) + refused
    return _section("Engines", text, made)


def _errors(report: dict[str, Any]) -> str:
    plot = plots.errors(report["layers"])
    if plot is None:
        return ""
    text = (
        "What rounding costs: the reference's integers, as real numbers, against the float model "
        "at the same place, as shares of the layer's largest value. Layers that only move values "
        "are left out."
    )
    return _section("Error against the float model, layer by layer", text, _figure(plot))


def _histograms(found: Comparison) -> str:
    made = []
    weights = histograms.weights(found.histograms)
    if weights:
        text = (
            "How often the int8 weights occur; where few different ones do, each is drawn by "
            "itself. The dotted lines are the largest values, ±127."
        )
        made.append(_section("Weights", text, _small(weights)))
    activations = histograms.activations(found.histograms)
    if activations:
        text = (
            "Filled: the integers of the reference. Line: the float model's values in the same "
            "units. The dotted lines are the range of int8; what the line shows beyond them was "
            "clipped, or is held at the end by a ReLU or its like. A single value far above "
            "all others is cut off."
        )
        made.append(_section("Activations", text, _small(activations)))
    return "\n".join(made)


def _small(drawn: Sequence[histograms.Small]) -> str:
    figures = "".join(
        f"<figure>{each.svg}<figcaption><b>{escape(each.name)}</b><br>{escape(each.note)}"
        "</figcaption></figure>"
        for each in drawn
    )
    return f'<div class="small">{figures}</div>'


def _schemes(report: dict[str, Any]) -> str:
    study = report.get("schemes")
    if not study:
        return ""
    labelled = "accuracy" in study[0]
    header = ["scheme", "weights", "of float32", "model file", "mean float error"]
    rows = []
    for record in study:
        row = [
            record["scheme"], human_bytes(record["weight_bytes"]),
            ratio(record["weight_bytes"], record["float_weight_bytes"]),
            human_bytes(record["file_bytes"]), f"{record['float_error_mean']:.3g}",
        ]  # fmt: skip
        rows.append(row + ([f"{record['accuracy']:.2%}"] if labelled else []))
    text = (
        "The float model quantized with each weight scheme, calibrated on these very inputs: a "
        "comparison of the schemes, no forecast for data that was not seen."
    )
    drawn = _figure(plots.schemes(study, report.get("accuracy_float")))
    made = drawn + _table(header + ["accuracy"] * labelled, rows)
    return _section("Weight schemes: accuracy against size", text, made)


def _costs(report: dict[str, Any]) -> str:
    made = []
    for engine in report["plans"]:
        drawn = (plots.traffic(report["layers"], engine), plots.times(report["layers"], engine))
        sides = [_figure(plot) for plot in drawn if plot is not None]
        plan = ", ".join(
            f"{key.replace('_', ' ')} {human_bytes(value) if 'bytes' in key else value}"
            for key, value in report["plans"][engine].items()
        )
        head = f"<h3>{_title(engine).capitalize()}</h3><p>Whole model: {plan}.</p>"
        made.append(f'{head}<div class="pair">{"".join(sides)}</div>')
    plain = plots.times(report["layers"], "reference")
    if plain is not None:
        made.append(f'<h3>Plaintext reference</h3><div class="pair">{_figure(plain)}</div>')
    text = (
        "For one sample. Bytes are those of the plan, which are exact. Times were measured in one "
        f"process without a network, in batches of up to {report['batch']}; they leave out what is "
        "made ahead."
    )
    return _section("Traffic and time per layer", text, "\n".join(made))


def _layers(report: dict[str, Any]) -> str:
    engines = report["engines"]
    floats = any("float_error_max" in layer for layer in report["layers"])
    header = ["layer", "op", "shape", *(f"differs: {_title(engine)}" for engine in engines)]
    header += ["mean float error", "largest"] if floats else []
    header += ["plaintext time"]
    header += [
        f"{_title(engine)}: {title}"
        for engine in report["plans"]
        for title in exact(engine).columns
    ]
    rows, marked = [], set()
    for number, layer in enumerate(report["layers"]):
        shape = "×".join(map(str, layer["shape"])) or "1"
        row = [layer["name"], layer["op"], shape]
        for found in engines.values():
            seen = found["layers"].get(layer["name"])
            row.append(f"{seen['mismatches']:,}" if seen else "–")
            if seen and seen["mismatches"]:
                marked.add(number)
        if floats:
            errors = (layer.get("float_error_mean"), layer.get("float_error_max"))
            row += ["–" if error is None else f"{error:.2g}" for error in errors]
        row.append(milliseconds(layer.get("reference", {}).get("ms")))
        for engine in report["plans"]:
            row += cost_cells(layer, engine)
        rows.append(row)
    text = "The same figures as numbers; a dash where there is none, or where a value stays hidden."
    return _section("Every layer", text, _table(header, rows, text=3, marked=marked))


def _section(title: str, text: str, content: str) -> str:
    words = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(title)}</h2>{words}\n{content}</section>"


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _table(
    header: Row, rows: Sequence[Row], *, text: int = 1, marked: set[int] | None = None
) -> str:
    """The first ``text`` columns are words; rows in ``marked`` stand out, by weight too."""

    def cells(row: Row, first: str, other: str) -> str:
        made = []
        for i, cell in enumerate(row):
            tag = first if i == 0 else other
            kind = ' class="text"' if i < text else ""
            scope = ' scope="row"' if tag == "th" and first != other else ""
            made.append(f"<{tag}{scope}{kind}>{escape(cell)}</{tag}>")
        return "".join(made)

    lines = []
    for i, row in enumerate(rows):
        kind = ' class="differs"' if i in (marked or ()) else ""
        lines.append(f"<tr{kind}>{cells(row, 'th', 'td')}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table><thead><tr>{cells(header, "th", "th")}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
