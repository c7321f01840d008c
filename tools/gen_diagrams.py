"""Who sends what to whom, drawn: docs/images/flow/*.svg.

Sequence diagrams without a script: the site loads nothing from elsewhere, and they follow the
reader's light or dark style.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images" / "flow"
STYLE = """
    .name { font-weight: 600; fill: #1f2328; } .text { fill: #3d444d; font-size: 12.5px; }
    .box { fill: #f4f6f8; stroke: #57606a; } .user { fill: #e6f4ea; stroke: #1a7f37; }
    .life { stroke: #afb8c1; stroke-dasharray: 4 4; } .line { stroke: #57606a; stroke-width: 1.6; }
    .tip { fill: #57606a; } .note { fill: #fff8e5; stroke: #d4a72c; }
    @media (prefers-color-scheme: dark) {
      .name { fill: #f0f3f6; } .text { fill: #c9d1d9; } .box { fill: #22272e; }
      .user { fill: #12351f; } .note { fill: #362b0c; } .tip { fill: #9aa4ae; }
      .line { stroke: #9aa4ae; }
    }
"""
WIDE, HIGH, TOP = 230, 44, 70


@dataclass(frozen=True)
class Step:
    """A message from one column to another, or a note at one (``to`` is None)."""

    start: int
    to: int | None
    text: str


@dataclass(frozen=True)
class Flow:
    """title, what it shows in words; columns, the first of which is the user's side; steps."""

    title: str
    words: str
    columns: tuple[str, ...]
    steps: tuple[Step, ...]


FLOWS = {
    "secret-sharing": Flow(
        "One inference under secret sharing",
        "The dealer sends one-time material to both parties ahead of time. The client sends a "
        "seed to party 1 and the masked input to party 0. The parties exchange masked values "
        "layer by layer, and each sends the client a share of the output.",
        ("Client", "Party 0", "Party 1", "Dealer"),
        (
            Step(3, 1, "ahead: a 32-byte seed"),
            Step(3, 2, "ahead: a seed, corrections"),
            Step(0, None, "quantize, draw a seed, x ⊕ stream"),
            Step(0, 1, "the input, masked"),
            Step(0, 2, "the 32-byte seed"),
            Step(1, 2, "each round: masked values, both ways"),
            Step(1, 0, "a share of the output"),
            Step(2, 0, "a share of the output"),
            Step(0, None, "open, dequantize"),
        ),
    ),
    "homomorphic": Flow(
        "One inference under homomorphic encryption",
        "For each linear layer the client encrypts its integers and sends ciphertexts; the server "
        "multiplies them by its weights, floods the answer with noise and sends it back; the "
        "client decrypts the exact sums and computes the activation.",
        ("Client", "HE server"),
        (
            Step(0, None, "quantize, a fresh secret key"),
            Step(0, 1, "each layer: ciphertexts"),
            Step(1, None, "× weights, + flooding noise"),
            Step(1, 0, "each layer: ciphertexts"),
            Step(0, None, "exact sums, activation, next layer"),
            Step(0, None, "after the last: dequantize"),
        ),
    ),
    "one-host": Flow(
        "One inference with one host",
        "Client and host pair once per connection by base oblivious transfers and make one-time "
        "material ahead of time. Online they exchange masked values layer by layer; the client "
        "opens the answer.",
        ("Client", "One host"),
        (
            Step(0, 1, "once: base OTs, both ways"),
            Step(0, 1, "ahead: OTs, ciphertexts, both ways"),
            Step(0, 1, "the input, masked"),
            Step(0, 1, "each flight: masked values, both ways"),
            Step(1, 0, "its share of the output"),
            Step(0, None, "open, dequantize"),
        ),
    ),
    "pipeline": Flow(
        "From a float model to served integers",
        "The owner quantizes a float model to a graph of integers, verifies it, and splits it into "
        "one bundle for each role; each server gets its own bundle and certificate only.",
        ("Owner", "Model file", "Bundles", "Servers"),
        (
            Step(0, 1, "quantize: int8, proven bounds"),
            Step(1, 0, "verify: every engine, every layer"),
            Step(1, 2, "split: the least for each role"),
            Step(2, 3, "one bundle, one certificate"),
            Step(3, None, "serve: gRPC over mutual TLS"),
        ),
    ),
}


def picture(flow: Flow) -> str:
    """One SVG; the text stays text."""
    width = WIDE * len(flow.columns) + 30
    height = TOP + HIGH * len(flow.steps) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-labelledby="title desc" font-family="system-ui, sans-serif" font-size="14">',
        f'  <title id="title">{escape(flow.title)}</title>',
        f'  <desc id="desc">{escape(flow.words)}</desc>',
        f"  <style>{STYLE}  </style>",
    ]
    for i, name in enumerate(flow.columns):
        x, kind = _middle(i), "user" if i == 0 else "box"
        parts += [
            f'  <line class="life" x1="{x}" y1="50" x2="{x}" y2="{height - 12}"/>',
            f'  <rect class="{kind}" x="{x - 70}" y="14" width="140" height="36" rx="6"/>',
            f'  <text class="name" x="{x}" y="37" text-anchor="middle">{escape(name)}</text>',
        ]
    for i, step in enumerate(flow.steps):
        parts += _drawn(step, TOP + HIGH * i + 22)
    return "\n".join([*parts, "</svg>", ""])


def _middle(column: int) -> int:
    return WIDE // 2 + 15 + WIDE * column


def _drawn(step: Step, y: int) -> list[str]:
    x, text = _middle(step.start), escape(step.text)
    wide = 16 + 6.6 * len(step.text)
    if step.to is None:
        left = max(4.0, x - wide / 2)
        return [
            f'  <rect class="note" x="{left:g}" y="{y - 15}" width="{wide:g}" height="24" rx="4"/>',
            f'  <text class="text" x="{left + 8:g}" y="{y + 2}">{text}</text>',
        ]
    end = _middle(step.to)
    way = 1 if end > x else -1
    tips = [(end, way)] + ([(x, -way)] if step.text.endswith("both ways") else [])
    heads = [f'  <path class="tip" d="M{at} {y}l{-9 * to} -5v10z"/>' for at, to in tips]
    return [
        f'  <line class="line" x1="{x}" y1="{y}" x2="{end}" y2="{y}"/>',
        *heads,
        f'  <text class="text" x="{(x + end) // 2}" y="{y - 7}" text-anchor="middle">{text}</text>',
    ]


def made() -> dict[Path, str]:
    """Path -> what is to stand there."""
    return {FOLDER / f"{name}.svg": picture(flow) for name, flow in FLOWS.items()}
