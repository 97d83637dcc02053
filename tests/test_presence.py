"""A proxy that runs is seen by whoever would log in beside it."""

import threading

from proxy.app.presence import present, who_is_present


def test_who_starts_while_somebody_looks_is_seen_all_the_same(tmp_path):
    ended = threading.Event()

    def look():
        while not ended.wait(0.0002):
            who_is_present(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    with present(tmp_path, admin="127.0.0.1:1"):
        pass
    for one in lookers:
        one.start()
    try:
        for number in range(1000):
            with present(tmp_path, admin=f"127.0.0.1:{number}"):
                assert who_is_present(tmp_path) == f"127.0.0.1:{number}"
    finally:
        ended.set()
        for one in lookers:
            one.join()
