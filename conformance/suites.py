"""The suites that others wrote, and how to read what they say."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gits import git
from lab import environment
from slow import slow
from stand import HERE, PYTHON, ROOT, LeftOut, Verdict, program

_WITHIN = 300  # seconds of one run of one suite
# A line is begun, and begun anew by a carriage return when its verdict is known; warnings stand between.
_LITMUS = re.compile(
    r"-> running `(?P<part>\w+)'"
    r"|\r *(?P<case>\d+\. \w+)\.* "
    r"|(?<=[\w.] )(?P<word>pass|FAIL|SKIPPED)\b(?P<said>.*)"
)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite.

    Attributes:
        name: what it is called on the page.
        source: where it comes from.
        origin: what it asks (`stand.origin`).
        run: takes a base URL and a folder of its own; verdicts by case. Raises `LeftOut`.
        compared: whether it is run against the origin too, to compare with.
    """

    name: str
    source: str
    origin: str
    run: Callable[[str, Path], dict[str, Verdict]]
    compared: bool = True


def _said(command: list[object], *, folder: Path) -> str:
    """What a command prints; that it fails says only that some case did."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment(), timeout=_WITHIN,
        capture_output=True, check=False,
    )  # fmt: skip
    if not done.stdout.strip():
        raise RuntimeError(
            f"{command[0]} says nothing: {done.stderr.decode(errors='replace')[-400:]}"
        )
    return done.stdout.decode(errors="replace")  # with its carriage returns


def litmus(url: str, folder: Path) -> dict[str, Verdict]:
    """WebDAV: 104 tests in five programs."""
    command = [program("litmus", "litmus"), "--keep-going", f"{url}/"]
    return read_litmus(_said(command, folder=folder))


def read_litmus(text: str) -> dict[str, Verdict]:
    """The verdicts in what litmus prints."""
    found, part, case = {}, "", ""
    for one in _LITMUS.finditer(text):
        part, case = one["part"] or part, one["case"] or case
        if one["word"]:
            word = {"pass": "pass", "FAIL": "fail", "SKIPPED": "skip"}[one["word"]]
            word = "warning" if word == "pass" and "warning" in one["said"] else word
            found[f"{part} {case}"] = Verdict(word, one["said"].strip())
    return found


def _sdist(folder: Path) -> Path:
    """httpbin's sdist of the version in the lock, unpacked; the wheel has no tests."""
    lock = (ROOT / "requirements/conformance.txt").read_text()
    (entry,) = re.findall(r"(?m)^httpbin==(?:.*\\\n)+.*\n", lock)
    (folder / "httpbin.txt").write_text(entry)
    command = [PYTHON, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-binary", "httpbin"]
    command += ["--require-hashes", "--requirement", "httpbin.txt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)  # not in the reason: it names the registry
        raise LeftOut("the sdist of httpbin cannot be had here")
    (archive,) = folder.glob("httpbin-*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def httpbin(url: str, folder: Path) -> dict[str, Verdict]:
    """httpbin's own tests, over HTTP instead of Flask's test client."""
    command = [PYTHON, HERE / "httpbin_tests.py", _sdist(folder), url]
    found = json.loads(_said(command, folder=folder))
    return {case: Verdict(*verdict) for case, verdict in found.items()}


def caches(url: str, folder: Path) -> dict[str, Verdict]:
    """http-cache-tests: what a cache does, so also what one must not do that is none."""
    found = json.loads(
        _said([program("node", "nodejs"), HERE / "http-cache-tests/client.mjs", url], folder=folder)
    )
    words = {"Assertion": "fail", "Setup": "setup", "FetchError": "broken"}
    return {
        case: Verdict("pass")
        if verdict is True
        else Verdict(words.get(verdict[0], "broken"), verdict[1])
        for case, verdict in found.items()
    }


SUITES = (
    Suite(name="litmus", source="Debian's litmus 0.13, wsgidav", origin="webdav", run=litmus),
    Suite(name="httpbin", source="the tests in httpbin's sdist", origin="httpbin", run=httpbin),
    Suite(name="http-cache-tests", source="npm", origin="caches", run=caches),
    Suite(name="git", source="git's smart HTTP", origin="git", run=git),
    Suite(
        name="slowhttptest", source="Debian's slowhttptest", origin="plain", run=slow,
        compared=False,
    ),
)  # fmt: skip
