"""Draw what a run has measured: python bench/plots.py RESULTS.json FOLDER (needs matplotlib)."""

import json
import math
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

OURS = "nomba-proxy"
# Ours stands out; the others keep a colour each, whoever takes part.
COLOURS = {
    OURS: "#c2185b",
    "nginx": "#2e7d32",
    "haproxy": "#00838f",
    "envoy": "#5e35b1",
    "caddy": "#1565c0",
    "fastify": "#ef6c00",
    "mitmproxy": "#6d4c41",
    "clientsession": "#455a64",
    "clientsession-no-log": "#90a4ae",
}
_DISTURBED = 0.1  # of a core
_GAP = 0.052  # of the axis, between two labels


def main(results: Path, folder: Path) -> None:
    """Write the pictures."""
    told = json.loads(results.read_text())
    style()
    if told["sweep"]:
        throughput(told).savefig(folder / "bench-throughput.png")
        latency(told).savefig(folder / "bench-latency.png")
    if told["works"]:
        cost(told).savefig(folder / "bench-cpu.png")


def style() -> None:
    """How all pictures look."""
    plt.rcParams.update({
        "figure.dpi": 130,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e5e5e5",
        "axes.axisbelow": True,
    })  # fmt: skip


def note(figure: Figure, told: dict) -> None:
    """Under which conditions it was measured."""
    said = told["conditions"]
    text = f"{said['cpu']}, one core for the proxy · Python {said['python']} · {said['date'][:10]}"
    text += f" · commit {said['commit']}"
    groups = [*told.get("works", ()), *told.get("sweep", ()), *told.get("curves", ())]
    every = [one for group in groups for one in group.get("series") or group["points"]]
    others = [one["median"]["others"] for one in every if one["rounds"]]
    if max(others) > _DISTURBED:
        text += f" · other processes used {max(others):.0%} of that core at worst"
    figure.text(0.01, 0.005, text, fontsize=7.5, color="#777777")


def lines(axes: Axes, told: dict, field: str) -> None:
    """One line a proxy over the numbers of connections, each named at its end."""
    counts = [group["connections"] for group in told["sweep"]]
    ends = []
    for name, colour in COLOURS.items():
        points = []
        for group in told["sweep"]:
            found = [one for one in group["series"] if one["peer"] == name and one["rounds"]]
            points += [(group["connections"], one["median"][field]) for one in found]
        if not points:
            continue
        ours = name == OURS
        axes.plot(
            *zip(*points, strict=True), color=colour, marker="o", markersize=6 if ours else 3.5,
            linewidth=3 if ours else 1.4, zorder=3 if ours else 2,
        )  # fmt: skip
        ends.append((points[-1], name, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(one) for one in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("connections at a time")
    label(axes, ends)


def label(axes: Axes, ends: list) -> None:
    """Write each name beside the end of its line, moved apart where they would touch."""
    axes.figure.canvas.draw()
    ends = sorted(ends, key=lambda end: end[0][1])
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = apart([to_axes.transform(point)[1] for point, _, _ in ends])
    for height, (point, name, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            name, xy=point, xytext=(1.05, height), textcoords="axes fraction", color=colour,
            va="center", fontweight="bold" if name == OURS else "normal",
            fontsize=10 if name == OURS else 9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip


def apart(heights: list[float]) -> list[float]:
    """Ascending heights, each two at least a gap apart, moved as little as that takes."""
    moved = list(heights)
    for _ in range(200):
        for at in range(1, len(moved)):
            lacking = _GAP - (moved[at] - moved[at - 1])
            if lacking > 0:
                moved[at - 1] -= lacking / 2
                moved[at] += lacking / 2
    return moved


def throughput(told: dict) -> Figure:
    """Requests a second against connections."""
    figure, axes = plt.subplots(figsize=(8.2, 5))
    lines(axes, told, "rate")
    axes.set_title("Throughput of one core: small GET, 1 KiB reply")
    axes.set_ylabel("requests a second (log)")
    note(figure, told)
    figure.subplots_adjust(left=0.1, right=0.79, top=0.93, bottom=0.13)
    return figure


def latency(told: dict) -> Figure:
    """Median and 99th percentile against connections."""
    figure, both = plt.subplots(1, 2, figsize=(13, 5.2))
    for axes, field, name in zip(both, ("p50", "p99"), ("median", "99th percentile"), strict=True):
        lines(axes, told, field)
        axes.set_title(f"Latency, {name}: small GET at full load")
        axes.set_ylabel("milliseconds (log)")
    note(figure, told)
    figure.subplots_adjust(left=0.06, right=0.88, top=0.93, bottom=0.13, wspace=0.52)
    return figure


def cost(told: dict) -> Figure:
    """CPU time per request, a panel a work: the median of the rounds, and from least to most."""
    works = told["works"]
    rows = math.ceil(len(works) / 3)
    figure, panels = plt.subplots(rows, 3, figsize=(13, 3.4 * rows + 0.3), squeeze=False)
    for axes in panels.flat[len(works) :]:
        axes.set_visible(False)
    for axes, group in zip(panels.flat, works, strict=False):
        series = [one for one in group["series"] if one["rounds"]][::-1]
        for at, one in enumerate(series):
            colour = COLOURS[OURS] if one["peer"] == OURS else "#607d8b"
            middle = one["median"]["cpu"]
            axes.plot(one["cpu_spread"], [at, at], color=colour, linewidth=2, alpha=0.5)
            axes.plot(middle, at, "o", color=colour, markersize=8 if one["peer"] == OURS else 5.5)
            axes.annotate(
                f"{middle:,.0f}", (middle, at), (0, 6), textcoords="offset points", ha="center",
                fontsize=8, color=colour,
            )  # fmt: skip
        names = [one["peer"].removeprefix(f"{OURS}, ") for one in series]
        axes.set_yticks(range(len(series)), names, fontsize=9)
        axes.set_ylim(-0.6, len(series) - 0.2)
        axes.set_title(group["title"])
        scale_cost(axes)
    note(figure, told)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def scale_cost(axes: Axes) -> None:
    """From nothing where the values are alike, else logarithmic."""
    low, high = axes.dataLim.intervalx
    axes.set_xlabel("CPU µs per request", fontsize=9)
    if high < 3 * low:
        axes.set_xlim(0, high * 1.1)
    else:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.4, high * 1.4)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("CPU µs per request (log)", fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.tick_params(axis="x", labelsize=8)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
