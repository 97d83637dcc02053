"""The picture of a simulated day (bench/fleet.py), as plain SVG with its figures inside."""

import json
import math
import re

WIDTH, HEIGHT, LEFT, RIGHT = 960, 620, 70, 36
UPPER, LOWER = (86, 330), (442, 580)  # top and bottom of the two charts
LEAST, MOST = 10.0, 30_000.0  # milliseconds, of the upper one
SPREAD = 20.0  # milliseconds, of the lower one
QUIET, KILLED, STOPPED = "#1f5fa8", "#c22f2f", "#b8690a"
TOLD = {10.0: "10 ms", 100.0: "100 ms", 1000.0: "1 s", 10_000.0: "10 s"}
_FIGURES = re.compile(r"<metadata>(.*?)</metadata>", re.DOTALL)


def read(svg: str) -> dict:
    """The figures that a picture was made of."""
    return json.loads(_FIGURES.search(svg).group(1))


def picture(figures: dict) -> str:
    """An SVG with the background of its own, so that it can be read on any page.

    Args:
        figures: `fleet.figures`.
    """
    rounds, replicas = figures["rounds"], figures["replicas"]
    hours = max(1, math.ceil(max(one["hour"] for one in rounds)))
    head = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg {head} font-family="system-ui, sans-serif" font-size="13" fill="#222">',
        f"<title>{replicas} replicas share one session for {hours} hours, simulated</title>",
        f"<metadata>{json.dumps(figures, separators=(',', ':'))}</metadata>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        text(LEFT, 28, f"{replicas} replicas, one session, {hours} hours (simulated)", size=17),
        text(
            LEFT,
            52,
            "Each renewal: how long replicas had no living token, from the first to the last",
        ),
        *legend(),
        *upper(rounds, hours=hours),
        text(
            LEFT,
            LOWER[0] - 36,
            "The same moment close up, each renewal where nothing failed a line:",
        ),
        text(
            LEFT, LOWER[0] - 18, "replicas that have the new token, after the first of them had it"
        ),
        *lower(rounds, replicas=replicas),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def text(x: float, y: float, what: str, *, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{what}</text>'


def line(points: list[tuple[float, float]], *, colour: str = "#ddd", width: float = 1.0) -> str:
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{shown}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def mark(x: float, y: float, how: str) -> str:
    """A cross for a holder that was killed, a square for one that was stopped."""
    if how == "killed":
        strokes = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
        return f'<path d="{strokes}" stroke="{KILLED}" stroke-width="2.2"/>'
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{STOPPED}"/>'


def legend() -> list[str]:
    y = UPPER[0] - 14
    return [
        f'<circle cx="{LEFT + 6}" cy="{y - 4}" r="4" fill="{QUIET}"/>',
        text(LEFT + 16, y, "nothing failed (the dot: half of the replicas)"),
        mark(LEFT + 330, y - 4, "killed"),
        text(LEFT + 342, y, "the holder of the lease was killed"),
        mark(LEFT + 580, y - 4, "stopped"),
        text(LEFT + 592, y, "… stopped for longer than the lease"),
    ]


def upper(rounds: list[dict], *, hours: int) -> list[str]:
    top, bottom = UPPER
    span = WIDTH - LEFT - RIGHT

    def height(value: float) -> float:
        share = math.log(min(max(value, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
        return bottom - share * (bottom - top)

    parts = []
    for value, name in TOLD.items():
        parts += [
            line([(LEFT, height(value)), (WIDTH - RIGHT, height(value))]),
            text(LEFT - 8, height(value) + 4, name, anchor="end"),
        ]
    step = max(1, hours // 8)
    for hour in range(0, hours + 1, step):
        parts.append(text(LEFT + span * hour / hours, bottom + 20, f"{hour} h", anchor="middle"))
    for one in rounds:
        x, dark = LEFT + span * one["hour"] / hours, one["dark"]
        colour = QUIET
        if one["failed"]:
            colour = KILLED if one["failed"][0] == "killed" else STOPPED
        parts += [
            line([(x, height(dark[0])), (x, height(dark[-1]))], colour=colour, width=2),
            f'<circle cx="{x:.1f}" cy="{height(dark[len(dark) // 2]):.1f}" r="3.5" fill="{colour}"/>',
        ]
        for number, how in enumerate(one["failed"]):
            parts.append(mark(x, height(dark[-1]) - 12 - 11 * number, how))
    return parts


def lower(rounds: list[dict], *, replicas: int) -> list[str]:
    top, bottom = LOWER
    span = WIDTH - LEFT - RIGHT
    parts = []
    for share in (0, 0.5, 1):
        y = bottom - share * (bottom - top)
        parts.append(line([(LEFT, y), (WIDTH - RIGHT, y)]))
        parts.append(text(LEFT - 8, y + 4, f"{share * replicas:.0f}", anchor="end"))
    parts += [
        text(LEFT + span * value / SPREAD, bottom + 20, f"{value} ms", anchor="middle")
        for value in range(0, int(SPREAD) + 1, 4)
    ]
    for one in rounds:
        if one["failed"]:
            continue
        points = [
            (
                LEFT + span * min(value - one["dark"][0], SPREAD) / SPREAD,
                bottom - number / (len(one["dark"]) - 1) * (bottom - top),
            )
            for number, value in enumerate(one["dark"])
        ]
        parts.append(line(points, colour=QUIET, width=0.8))
    return parts
