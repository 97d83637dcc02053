"""What a soak has found: what holds, and its tables for a terminal and for docs/soak.md."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from paced import percentile
from soak_watch import MIB, Sample, growth

ANSWERED, WITH_WORKER, LOST = "answered", "lost with a killed worker", "lost"
TOKENLESS = "503, store gone in a token call"
RIVALLED = "401, two tokens died, one of a rival's login"
_RESULTS = (ANSWERED, WITH_WORKER, TOKENLESS, RIVALLED, LOST)
SETTLES = 60.0  # seconds until memory is judged: caches are filled by then
QUIET_SETTLES = 30.0  # the same for workers that are as old as the quiet time
JUDGED = 180.0  # seconds of a run from which on growth means something
_GROWTH, _SHARE = 4 * MIB, 0.05  # the larger of the two is no growth
_FILES = 8  # descriptors: a pool has now more connections to Nomba and now fewer
_AT_ONE_END = 10  # samples
_NEVER = ("loop_fault", "process_hung", "process_not_started", "session_stopped", "store_odd")


def money(references: Mapping[str, str], *, sent: Counter[str], moved: Counter[str]) -> dict:
    """What became of the transfers.

    Args:
        references: what the caller was told of each.
        sent: how often the upstream got each, but for refusals of its token.
        moved: how often the upstream's ledger has each.
    """
    told = {one for one, result in references.items() if result == ANSWERED}
    untold = set(references) - told
    refused = {one for one, result in references.items() if result in {TOKENLESS, RIVALLED}}
    return {
        "tried": len(references),
        "acknowledged": len(told),
        "acknowledged, done once": sum(moved[one] == 1 for one in told),
        "acknowledged, missing": sum(not moved[one] for one in told),
        "not acknowledged, done once": sum(moved[one] == 1 for one in untold),
        "not acknowledged, not done": sum(not moved[one] for one in untold),
        "refused, but sent": sum(sent[one] > 0 for one in refused),
        "sent or done twice": sum(max(sent[one], moved[one]) > 1 for one in references),
        "done, not asked for": len(set(moved) - set(references)),
    }


def requests(
    counts: Counter[tuple[str, str, str]],
    *,
    fresh: Counter[tuple[str, str]],
    taken: Mapping[tuple[str, str], list[float]],
) -> list[dict]:
    """A row for each kind and door; milliseconds."""
    rows = []
    for kind, door in sorted({one[:2] for one in counts}):
        every = {one: counts[kind, door, one] for one in _RESULTS}
        ordered = sorted(taken[kind, door]) or [0.0]
        times = {name: percentile(ordered, share) for name, share in _MARKS.items()}
        row = {"what": f"{kind} over {door}", "requests": sum(every.values())}
        row |= {"over a fresh connection": fresh[kind, door], **every}
        rows.append(row | {name: round(value * 1e3, 1) for name, value in times.items()})
    return rows


_MARKS = {"p50 ms": 0.5, "p99 ms": 0.99, "max ms": 1.0}


def held(samples: list[Sample], *, seconds: float, quiet: tuple[float, float]) -> list[dict]:
    """Memory and descriptors: at the beginning, at the end, and what a line through all rises by.

    Descriptors are counted without those of callers' connections, of which there are more or fewer.
    """
    calm = [one for one in samples if one.calm]
    late = [one for one in calm if one.at >= min(SETTLES, seconds / 4)]
    begin = quiet[0] * seconds + min(QUIET_SETTLES, seconds / 10)
    undisturbed = [one for one in calm if begin <= one.at < quiet[1] * seconds]
    return [
        _held("all processes, MiB", late, lambda one: sum(one.memory) / MIB),
        _held("the supervisor, MiB", late, lambda one: one.memory[0] / MIB),
        _held("workers while none is ended, MiB", undisturbed, lambda one: sum(one.memory[1:]) / MIB),
        _held("all processes, descriptors", late, lambda one: sum(one.files) - one.connections),
        _held("the supervisor, descriptors", late, lambda one: one.files[0]),
        _held("workers while none is ended, descriptors", undisturbed, lambda one: sum(one.files[1:]) - one.connections),
        _held("callers' connections", late, lambda one: one.connections),
    ]  # fmt: skip


def _held(what: str, samples: list[Sample], value: Callable[[Sample], float]) -> dict:
    points = [(one.at, value(one)) for one in samples]
    ends = (points[:_AT_ONE_END], points[-_AT_ONE_END:])
    begin, end = (statistics.mean(y for _, y in part) if part else 0.0 for part in ends)
    figures = {"at first": begin, "at last": end, "growth": growth(points)}
    rounded = {name: round(number, 2) for name, number in figures.items()}
    return {"what": what, "looks": len(points), **rounded}


def verdict(found: Mapping[str, Any]) -> list[dict]:
    """What has to hold, and whether it does."""
    bank, log, events = found["money"], found["log"], found["events"]
    lost = sum(one[LOST] for one in found["requests"])
    reloads = {name: n for name, n in events.items() if name.startswith("reload")}
    renewed = found["renewals"]["by refresh"] + found["renewals"]["by issue"]
    rows = [
        _row("no caller is lost", not lost, f"{lost} of {sum(_requests(found))}"),
        _row(
            "acknowledged money is there once",
            bank["acknowledged"] == bank["acknowledged, done once"],
            f"{bank['acknowledged, done once']} of {bank['acknowledged']}",
        ),
        _row("no money twice", not bank["sent or done twice"], f"{bank['sent or done twice']}"),
        _row(
            "no money that was refused, or not asked for",
            not bank["refused, but sent"] and not bank["done, not asked for"],
            f"{bank['refused, but sent'] + bank['done, not asked for']}",
        ),
        _row(
            "each event came, and the log tells of it",
            all(events.values())
            and sum(reloads.values()) == log["reloaded"] + log["reload_failed"]
            and events["kill -9 of a worker"] == log["process_ended"],
            f"{sum(events.values())} events",
        ),
        _row("no fault in the log", not any(log.get(one) for one in _NEVER), ""),
        _row(
            "no renewal is wasted",
            1 <= renewed <= found["renewals"]["at most"],
            f"{renewed}; at most {found['renewals']['at most']}",
        ),
        _row("it ends as it should", found["exit_code"] == 0, f"exit code {found['exit_code']}"),
    ]
    if found["seconds"] < JUDGED:
        return rows
    for one in found["held"]:
        if "MiB" in one["what"]:
            limit = max(_GROWTH / MIB, one["at first"] * _SHARE)
        elif "descriptors" in one["what"]:
            limit = _FILES
        else:
            continue
        said = f"{one['growth']:+.2f}; at most {limit:.2f}"
        rows.append(_row(f"flat: {one['what']}", one["looks"] > 2 and one["growth"] <= limit, said))
    return rows


def _row(what: str, holds: bool, said: str) -> dict:  # noqa: FBT001 - a row is read as it stands
    return {"what": what, "holds": holds, "found": said}


def _requests(found: Mapping[str, Any]) -> Iterable[int]:
    return (one["requests"] for one in found["requests"])


def tables(found: Mapping[str, Any]) -> str:
    """All of it in Markdown, which can be read on a terminal too."""
    verdicts = [
        {"what": one["what"], "": "yes" if one["holds"] else "**NO**", "found": one["found"]}
        for one in found["verdict"]
    ]
    events = [{"what": name, "times": times} for name, times in found["events"].items()]
    store = "restarts of the store while a token call was under way"
    events.append({"what": store, "times": found["store_in_token_calls"]})
    renewals = [{"renewals": name, "times": n} for name, n in found["renewals"].items()]
    transfers = [{"transfers": name, "": n} for name, n in found["money"].items()]
    told = found["conditions"]
    head = (
        f"{told['date'][:10]}, commit {told['commit']}: {told['cpu']}, {told['cores']} cores, Python "
        f"{told['python']}, load average before the run {told['load_average'][0]:.2f}; "
        f"{found['seconds'] / 60:.1f} minutes, {found['rate']:g} requests a second, "
        f"{found['workers']} workers, tokens of {found['lifetime']:g} s, seed {found['seed']}; sent at "
        f"most {found['sent_late_seconds'] * 1e3:.0f} ms late.\n"
    )
    parts = [
        head,
        _table("what has to hold", verdicts),
        _table("requests", found["requests"]),
        _table("events", events),
        _table("renewals", renewals),
        _table("transfers", transfers),
        _table("memory (PSS), descriptors", found["held"]),
    ]
    return "\n".join(parts)


def _table(title: str, rows: list[dict]) -> str:
    """Rows that all have the same columns, of which the first is named by the title."""
    names = list(rows[0])
    lines = [[title, *names[1:]], ["---", *("--:" for _ in names[1:])]]
    lines += [[_cell(one) for one in row.values()] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
