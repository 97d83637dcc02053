"""From the bytes of a head to the bytes of another: the target, the fields, the ids."""

import pytest

from proxy.core.heads import CallerHead
from proxy.core.ids import request_id
from proxy.core.reply_heads import ReplyHead
from proxy.core.routes import login_call
from proxy.core.target import parse_target

TARGETS = {
    "plain": b"/v1/accounts/balance",
    "query": b"/v1/transactions/accounts?dateFrom=2026-01-01T00%3A00%3A00&limit=20",
    "encoded": b"/v1/accounts/01a10aeb%2Dd989/balance",
}


@pytest.mark.parametrize("form", TARGETS)
def test_parse_target(benchmark, form):
    target = benchmark(parse_target, TARGETS[form], is_own_authority=bool)
    assert target.raw == TARGETS[form]


def test_login_call(benchmark):
    assert benchmark(login_call, "/v1/accounts/balance") is None


def test_caller_head(benchmark, headers):
    sent = (*headers, (b"accountId", b"account"))
    head = benchmark(CallerHead, sent, target_length=20)
    assert (head.length, head.accounts) == (1024, ("account",))


def test_request_head(benchmark, headers, token):
    def build():
        head = CallerHead(headers).forward(
            b"POST", target=b"/v1/transfers/bank/lookup", host=b"api.nomba.com", body_length=1024
        )
        return head.with_token(token, account="account")

    built = benchmark(build)
    assert built.endswith(b"accountId: account\r\n\r\n")
    assert b"npk_" not in built


def test_reply_head(benchmark, reply_headers):
    own = b"X-Request-Id: 0123456789abcdef0123456789abcdef\r\nNomba-Proxy-Outcome: answered\r\n"

    def build():
        return ReplyHead(200, reason=b"OK", headers=reply_headers).render(own)

    assert benchmark(build).endswith(b"Nomba-Proxy-Outcome: answered\r\n\r\n")


def test_request_id_made(benchmark):
    assert len(benchmark(request_id, None)) == 32


def test_request_id_taken_over(benchmark):
    assert benchmark(request_id, "order-1-0123456789abcdef") == "order-1-0123456789abcdef"
