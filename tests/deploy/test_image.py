"""The Dockerfile; `make image-check` builds it and runs what comes out."""

import json
import re
from pathlib import Path

from image_check import Build, instructions, sent

ROOT = Path(__file__).parents[2]
DOCKERFILE = list(instructions((ROOT / "Dockerfile").read_text()))


def test_the_check_without_docker_knows_every_instruction():
    assert DOCKERFILE[0][0] == "ARG"
    for word, _ in DOCKERFILE:
        assert hasattr(Build, f"_{word.lower()}"), word


def test_what_is_copied_is_sent():
    copied = [rest.split()[:-1] for word, rest in DOCKERFILE if word == "COPY"]
    for sources in copied:
        if not sources[0].startswith("--from"):
            assert {one.partition("/")[0] for one in sources} <= sent()


def test_the_image_runs_as_nobody_that_a_host_knows_and_keeps_its_state_on_a_volume():
    said = dict(DOCKERFILE)
    uid, gid = map(int, said["USER"].split(":"))
    assert uid > 10_000 < gid
    [state] = re.findall(r"NOMBA_PROXY_STATE_DIR=(\S+)", said["ENV"])
    assert f"RUN install -d -o {uid} -g {gid} -m 0700 {state}" in (ROOT / "Dockerfile").read_text()
    assert json.loads(said["ENTRYPOINT"]) == ["nomba-proxy"]
