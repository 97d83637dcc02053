"""Foreign suites against an origin, then through the proxy in front of it.

    make conformance                      all of them (some five minutes)
    make conformance ARGS="litmus git"    these; of the others, what was found before stays

Writes docs/conformance.json and the table of docs/conformance.md. Ends with 1 if a verdict differs
that the page gives no reason for.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import stand
import verdicts
from lab import interruptible
from stand import LeftOut, Verdict
from suites import SUITES, Suite

Cases = dict[str, tuple[Verdict | None, Verdict]]


def measured(suite: Suite, folder: Path) -> Cases:
    """Run it, without the proxy and with."""
    served = folder / "origin"
    served.mkdir()
    with stand.origin(suite.origin, served) as direct, stand.proxy(direct, folder) as via:
        found = []
        for name, url in (("direct", direct), ("via", via)):
            own = folder / name
            own.mkdir()
            run = suite.compared or name == "via"
            found.append(suite.run(url, own) if run else {})
    first, second = found
    if suite.compared and first.keys() != second.keys():  # what one of them left untold has failed
        untold = Verdict("untold")
        first |= dict.fromkeys(second.keys() - first.keys(), untold)
        second |= dict.fromkeys(first.keys() - second.keys(), untold)
    return {case: (first.get(case), verdict) for case, verdict in second.items()}


def entry(suite: Suite, cases: Cases, *, left_out: str = "") -> dict:
    """What is written down of it."""
    return {
        "source": suite.source,
        "date": time.strftime("%Y-%m-%d"),
        "left_out": left_out,
        "cases": {
            case: [direct and direct.word, via.word] for case, (direct, via) in cases.items()
        },
    }


def show(name: str, cases: Cases) -> None:
    """Print how it went, with what the suite says of the cases that differ."""
    print(f"{name}: {len(cases)} cases")
    for case, (direct, via) in cases.items():
        if direct is None:
            print(f"  {case}: {via.word}: {via.said}")
        elif direct.word != via.word:
            print(f"  {case}")
            print(f"    direct  {direct.word}  {direct.said[:200]}")
            print(f"    through {via.word}  {via.said[:200]}")


def main() -> int:
    """Run; 1 if something is not explained."""
    parser = argparse.ArgumentParser(description="foreign suites through the proxy")
    parser.add_argument("suite", nargs="*", help=", ".join(suite.name for suite in SUITES))
    wanted = set(parser.parse_args().suite)
    if unknown := wanted - {suite.name for suite in SUITES}:
        parser.error(f"no suite is called {', '.join(sorted(unknown))}")
    results = verdicts.found()["suites"] if wanted else {}
    for suite in SUITES:
        if wanted and suite.name not in wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
            try:
                cases = measured(suite, Path(folder))
            except LeftOut as problem:
                print(f"LEFT OUT  {suite.name}: {problem}", file=sys.stderr)
                results[suite.name] = entry(suite, {}, left_out=str(problem))
                continue
        show(suite.name, cases)
        results[suite.name] = entry(suite, cases)
    order = [suite.name for suite in SUITES if suite.name in results]
    written = {"suites": {one: results[one] for one in order}}
    verdicts.write(written)
    text = verdicts.filled(verdicts.PAGE.read_text(), written)
    verdicts.PAGE.write_text(text)
    missing, stale = verdicts.compared(written, text)
    for line in stale:
        print(f"no longer so  {line}", file=sys.stderr)
    for line in missing:
        print(f"NO REASON in docs/{verdicts.PAGE.name}  {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    with interruptible():
        sys.exit(main())
