"""httpbin's own tests against a URL: `python httpbin_tests.py FOLDER URL`, in .venv-conformance.

They are written for Flask's test client. Here that client calls a WSGI app which sends every
request over HTTP, so all it knows of cookies, forms and redirects stays in use. FOLDER is the
sdist, as the wheel has no tests. Prints verdicts as JSON.
"""

import http.client
import json
import sys
import unittest
from collections.abc import Callable, Iterable
from urllib.parse import quote, urlsplit

import httpbin
from werkzeug.test import Client
from werkzeug.wrappers import Response

_WITHIN = 30  # seconds of a reply
_OF_A_HOP = {"transfer-encoding", "connection", "keep-alive"}


def over_http(url: str) -> Callable:
    """A WSGI app that asks the server at `url`."""
    host = urlsplit(url).netloc

    def answer(environ: dict, start_response: Callable) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        fields = {
            name[5:].replace("_", "-").title(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
            and name != "HTTP_"  # one test asks for a field without a name
        }
        if environ.get("CONTENT_TYPE"):
            fields["Content-Type"] = environ["CONTENT_TYPE"]
        fields["Host"] = host
        path = quote(environ["PATH_INFO"].encode("latin-1"))
        query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
        connection = http.client.HTTPConnection(host, timeout=_WITHIN)
        chunked = "Transfer-Encoding" in fields
        content = iter([body]) if chunked else body or None
        connection.request(
            environ["REQUEST_METHOD"], path + query, content, fields, encode_chunked=chunked
        )
        reply = connection.getresponse()
        came = reply.read()
        connection.close()
        kept = [field for field in reply.getheaders() if field[0].lower() not in _OF_A_HOP]
        start_response(f"{reply.status} {reply.reason}", kept)
        return [came]

    return answer


class Verdicts(unittest.TestResult):
    """What became of each test: a word, and what the failed ones say."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[str, str]] = {}

    def _add(self, test: unittest.TestCase, word: str, said: object = "") -> None:
        self.found[test.id().rpartition(".")[2]] = (word, str(said).strip()[:300])

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._add(test, "pass")

    def addFailure(self, test: unittest.TestCase, err: tuple) -> None:
        self._add(test, "fail", err[1] or err[0].__name__)

    def addError(self, test: unittest.TestCase, err: tuple) -> None:
        self._add(test, "fail", repr(err[1]))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._add(test, "skip", reason)


if __name__ == "__main__":
    folder, url = sys.argv[1:]
    httpbin.app.test_client = lambda: Client(over_http(url), Response)
    verdicts = Verdicts()
    unittest.defaultTestLoader.discover(f"{folder}/tests", top_level_dir=folder).run(verdicts)
    json.dump(verdicts.found, sys.stdout)
