"""Ask pip-audit about known vulnerabilities of what the proxy needs when it runs; `make audit` runs it.

pip-audit says of a package that its service does not know, or cannot tell of, that it was skipped, and ends
well. Nothing was found then because nobody looked, so this says which of the two it is.
"""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements/run.txt"
GOOD, VULNERABLE, UNKNOWN = 0, 1, 2


def audit(program: str) -> tuple[int, str]:
    """What it comes to, and a text that says so."""
    command = [
        program,
        "--disable-pip",
        "--progress-spinner",
        "off",
        "--format",
        "json",
        "-r",
        str(LOCK),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return UNKNOWN, f"pip-audit could not look: {why}"
    bad = [
        f"{one['name']} {one['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'no version'}"
        for one in found
        for fault in one.get("vulns", [])
    ]
    if bad:
        return VULNERABLE, "\n".join(bad)
    skipped = [one["name"] for one in found if "skip_reason" in one]
    if skipped or not found:
        told = f"{len(skipped)} of {len(found)} packages could not be looked up ({', '.join(skipped[:3])} …)"
        return (
            UNKNOWN,
            f"{told}: pip-audit's service cannot be reached from here, or does not know them",
        )
    return GOOD, f"no known vulnerability in {len(found)} packages"


if __name__ == "__main__":
    code, text = audit(sys.argv[1])
    print(f"audit: {text}", file=sys.stderr if code else sys.stdout)
    if code == UNKNOWN and "--if-possible" in sys.argv:
        code = GOOD
    sys.exit(code)
