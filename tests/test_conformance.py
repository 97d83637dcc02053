"""What docs/conformance.md says is what was found, and nothing that differs goes without a reason."""

import shutil

import compare
import pytest
import stand
import suites
import verdicts
from stand import Verdict

PAGE = verdicts.PAGE.read_text()
# What litmus prints when a test fails, warns, has a long name, or is not run.
LITMUS = (
    "-> running `copymove':\n"
    "\r 3. copy_simple........... \r 3. copy_simple........... FAIL (simple resource COPY:\n"
    "502 Bad Gateway)\n"
    "\r 5. copy_nodestcoll....... WARNING: COPY gave '502 Bad Gateway' not 409\n"
    "    ...................... pass (with 1 warning)\n"
    "    ...................... \r 6. copy_cleanup.......... pass\n"
    "<- summary for `copymove': of 3 tests run: 2 passed, 1 failed. 66.7%\n"
    "-> running `locks':\n"
    "\r18. cond_put_corrupt_token \r18. cond_put_corrupt_token pass\n"
    "\r19. notowner_lock......... \r19. notowner_lock......... SKIPPED\n"
)


def results(*, left_out="", compared=True, **cases):
    pairs = {case: [direct if compared else None, via] for case, (direct, via) in cases.items()}
    entry = {"source": "others", "date": "2000-01-01", "left_out": left_out, "cases": pairs}
    return {"suites": {"theirs": entry}}


def test_the_page_tells_what_was_found():
    assert verdicts.filled(PAGE, verdicts.found()) == PAGE
    assert "<!-- table counts -->" in PAGE
    assert verdicts.found()["suites"].keys() == {suite.name for suite in suites.SUITES}


def test_whatever_differs_has_a_reason_on_the_page_and_nothing_else_has():
    assert verdicts.compared(verdicts.found(), PAGE) == ([], [])
    assert verdicts.differences(verdicts.found())


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ("| `a` | pass | fail | It is so. |", []),
        ("| `b`, `a` | pass | fail | It is so. |", []),
        ("| `a` | pass | fail | |", ["theirs: a: pass → fail"]),
        ("| `a` | fail | pass | It is so. |", ["theirs: a: pass → fail"]),
        ("| `b` | pass | fail | It is so. |", ["theirs: a: pass → fail"]),
        ("", ["theirs: a: pass → fail"]),
    ],
)
def test_a_difference_is_missed_unless_a_row_names_it_and_says_why(row, missing):
    found = results(a=("pass", "fail"), c=("fail", "fail"), d=("pass", "pass"))
    assert verdicts.compared(found, f"### theirs\n{row}\n")[0] == missing
    assert verdicts.compared(found, f"### others\n{row}\n")[0] == ["theirs: a: pass → fail"]


def test_a_reason_for_what_does_not_differ_is_found():
    page = "### theirs\n| `a` | pass | fail | It is so. |\n"
    assert verdicts.compared(results(a=("pass", "pass")), page)[1] == ["theirs: a: pass → fail"]
    left_out = results(left_out="it is not installed")
    assert verdicts.compared(left_out, page) == ([], [])
    assert "| left out: it is not installed |" in verdicts.filled(
        "<!-- table counts -->\n<!-- end -->", left_out
    )


def test_a_suite_with_nothing_to_compare_with_has_to_pass():
    found = results(compared=False, a=("", "fail"), b=("", "pass"))
    assert verdicts.compared(found, "")[0] == ["theirs: a: – → fail"]


def test_what_litmus_says_is_read_to_the_last_case():
    found = suites.read_litmus(LITMUS)
    assert {case: verdict.word for case, verdict in found.items()} == {
        "copymove 3. copy_simple": "fail",
        "copymove 5. copy_nodestcoll": "warning",
        "copymove 6. copy_cleanup": "pass",
        "locks 18. cond_put_corrupt_token": "pass",
        "locks 19. notowner_lock": "skip",
    }


@pytest.mark.skipif(
    not (stand.PYTHON.exists() and shutil.which("litmus")),
    reason="needs litmus, and what `make conformance` installs",
)
def test_webdav_through_the_proxy_is_webdav(tmp_path):
    (litmus,) = (suite for suite in suites.SUITES if suite.name == "litmus")
    cases = compare.measured(litmus, tmp_path)
    assert len(cases) == 104
    assert set(cases.values()) == {(Verdict("pass"), Verdict("pass"))}
