"""What docs/conformance.md says of what was found in docs/conformance.json.

The table of counts is written anew; why a verdict differs is written by hand, below a heading with
the suite's name, in rows of `| cases | direct | through the proxy | why |`.
"""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FOUND = DOCS / "conformance.md", DOCS / "conformance.json"
_TABLE = re.compile(r"(<!-- table counts -->\n).*?(<!-- end -->)", re.DOTALL)
_NOT_RUN = "–"
Differences = dict[tuple[str, str], tuple[str, str]]  # suite and case: verdicts direct and through


def found() -> dict:
    """What the last run found."""
    return json.loads(FOUND.read_text()) if FOUND.exists() else {"suites": {}}


def write(results: dict) -> None:
    """Write them down, a case a line."""
    text = re.sub(r"\[\s+(\S+),\s+(\S+)\s+\]", r"[\1, \2]", json.dumps(results, indent=1))
    FOUND.write_text(text + "\n")


def differences(results: dict) -> Differences:
    """The cases whose verdict is another through the proxy than without, or no pass alone."""
    return {
        (name, case): (direct or _NOT_RUN, via)
        for name, suite in results["suites"].items()
        for case, (direct, via) in suite["cases"].items()
        if via != (direct or "pass")
    }


def reasons(text: str) -> Differences:
    """The differences that the page gives a reason for."""
    explained: Differences = {}
    suite = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"##+ (\S+)", line):
            suite = heading[1]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4 and cells[3]:
            for case in re.findall(r"`([^`]+)`", cells[0]):
                explained[suite, case] = (cells[1], cells[2])
    return explained


def compared(results: dict, text: str) -> tuple[list[str], list[str]]:
    """Differences without a reason on the page, and reasons for what is not so.

    What was left out is not missed.
    """
    differing, explained = differences(results), reasons(text)
    ran = {name for name, suite in results["suites"].items() if not suite["left_out"]}

    def named(some: Differences, others: Differences) -> list[str]:
        return [
            f"{suite}: {case}: {direct} → {via}"
            for (suite, case), (direct, via) in some.items()
            if suite in ran and others.get((suite, case)) != (direct, via)
        ]

    return named(differing, explained), named(explained, differing)


def filled(text: str, results: dict) -> str:
    """The page with its table as the results are."""
    lines = [
        "| suite | from | run on | cases | pass direct | pass through the proxy | same verdict |"
    ]
    lines.append("| --- | --- | --- | --: | --: | --: | --: |")
    for name, suite in results["suites"].items():
        pairs = suite["cases"].values()
        if suite["left_out"]:
            counts = [f"left out: {suite['left_out']}", "", "", ""]
        else:
            compared = all(direct for direct, _ in pairs)
            direct = sum(direct == "pass" for direct, _ in pairs) if compared else _NOT_RUN
            same = sum(direct == via for direct, via in pairs) if compared else _NOT_RUN
            counts = [len(pairs), direct, sum(via == "pass" for _, via in pairs), same]
        lines.append(
            f"| {name} | {suite['source']} | {suite['date']} | {' | '.join(map(str, counts))} |"
        )
    table = "\n".join(lines)
    return _TABLE.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)
