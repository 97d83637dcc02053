"""Draw the curves of bench/growth.py: python bench/growth_plots.py RESULTS.json FOLDER."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from plots import COLOURS, OURS, note, style

_LOG = {"body", "callers"}  # curves whose values differ by large factors
_UNITS = ((1024 * 1024, "Mi"), (1024, "Ki"))


def main(results: Path, folder: Path) -> None:
    """Write the picture."""
    told = json.loads(results.read_text())
    style()
    growth(told).savefig(folder / "bench-growth.png")


def growth(told: dict) -> Figure:
    """A panel a curve: the median of the rounds, and from least to most."""
    curves = told["curves"]
    figure, panels = plt.subplots(
        1, len(curves), figsize=(3 * len(curves) + 0.6, 3.5), squeeze=False
    )
    for axes, curve in zip(panels[0], curves, strict=True):
        draw(axes, curve)
    panels[0][0].set_ylabel("CPU µs per request")
    note(figure, told)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return figure


def draw(axes: Axes, curve: dict) -> None:
    """One curve, on logarithmic axes where the range asks for them."""
    points = [one for one in curve["points"] if one["rounds"]]
    values = [one["value"] for one in points]
    least, most = zip(*(one["cpu_spread"] for one in points), strict=True)
    axes.fill_between(values, least, most, color=COLOURS[OURS], alpha=0.15, linewidth=0)
    middle = [one["median"]["cpu"] for one in points]
    axes.plot(values, middle, color=COLOURS[OURS], marker="o", markersize=4.5, linewidth=2)
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_major_formatter(plain)
    if curve["curve"] in _LOG:
        axes.set_xscale("log")
        shown = values[::2] if len(values) > 4 else values
        axes.set_xticks(
            shown, [_short(one) if curve["curve"] == "body" else f"{one:,}" for one in shown]
        )
        axes.xaxis.set_minor_locator(NullLocator())
    if max(most) > 10 * min(least):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, max(most) * 1.15)
    axes.yaxis.set_major_formatter(plain)
    axes.tick_params(labelsize=8.5)
    axes.set_title(curve["title"], fontsize=10)


def _short(size: int) -> str:
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size:,}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
