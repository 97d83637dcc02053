"""The harness of `make bench`: quick tests, those with real load skipped where it cannot be made."""

import shutil

import pytest
from origin import find


@pytest.fixture
def taskset():
    if not find("taskset"):
        pytest.skip("taskset is not installed: NOTHING OF THE BENCH's processes is tested")


@pytest.fixture
def with_wrk(taskset):
    if not shutil.which("wrk"):
        pytest.skip("wrk is not installed: NO LOAD OF THE BENCH is tested (apt-get install wrk)")


@pytest.fixture
def whole_bench(with_wrk):
    if not find("nginx"):
        pytest.skip("nginx is not installed: THE BENCH is not tested (apt-get install nginx-light)")
