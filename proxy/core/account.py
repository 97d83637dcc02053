"""Which account a request is made for.

Nomba's `accountId` header is always the parent account; apps send it in several
spellings, send a sub-account, or send none (facts, section 3). It is a header only:
an `accountId` in a query or body is never touched.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from proxy.core.routes import Kind
from proxy.core.secret import mask
from proxy.errors import AccountMismatch

Policy = Literal["override", "fill", "allow"]


@dataclass(frozen=True, slots=True)
class AccountRule:
    """How `accountId` is decided at one upstream.

    Attributes:
        account: the parent account the session belongs to.
        policy: `override` sends ours always, `fill` only where the caller sent none,
            `allow` the caller's if it is listed.
        allowed: ids, lower case, that `allow` accepts beside `account`.
        override_money: whether `override` may replace another id on a money call.
    """

    account: str
    policy: Policy = "override"
    allowed: frozenset[str] = frozenset()
    override_money: bool = False


class AccountDecision(NamedTuple):
    """The id to send, and the caller's differing id if ours replaced it."""

    account: str
    replaced: str | None = None


def decide_account(
    rule: AccountRule,
    *,
    sent: tuple[str, ...],
    kind: Kind,
    own: frozenset[str] = frozenset(),
) -> AccountDecision:
    """The account a request goes out with.

    Args:
        rule: the upstream's rule.
        sent: the different ids the caller sent (`heads.CallerHead`).
        kind: the request's class.
        own: ids, lower case, that the caller may act for, which `allow` accepts too.

    Raises:
        AccountMismatch: the caller meant an account that may not be replaced or used.
    """
    if not sent:
        return AccountDecision(rule.account)
    differing = tuple(one for one in sent if one.lower() != rule.account.lower())
    if not differing:
        return AccountDecision(rule.account)
    if rule.policy == "override":
        if kind is Kind.MONEY and not rule.override_money:
            raise _mismatch(rule, differing, "money is not moved for an account nobody meant")
        return AccountDecision(rule.account, replaced=differing[0])
    if len(sent) > 1:
        raise _mismatch(rule, differing, "several different ids were sent")
    if rule.policy == "allow" and differing[0].lower() not in rule.allowed | own:
        raise _mismatch(rule, differing, "it is not in upstream.account_allow")
    return AccountDecision(differing[0])


def told_account(rule: AccountRule, *, sent: tuple[str, ...], own: frozenset[str]) -> str:
    """The account that an app is told it has logged in for: some compare it with their own.

    Args:
        rule: the upstream's rule.
        sent: the different ids the caller sent.
        own: ids, lower case, that this caller may act for beside.

    Raises:
        AccountMismatch: it is not one that requests of this caller could be made for.
    """
    parent = rule.account.lower()
    if not sent:
        only = len(own) == 1 and parent not in own
        return next(iter(own)) if only else rule.account
    allowed = own or {parent} | (rule.allowed if rule.policy == "allow" else frozenset())
    for one in sent:
        anything = rule.policy == "fill" and len(sent) == 1 and not own
        if not anything and one.lower() not in allowed:
            raise AccountMismatch(
                f"The login names account {mask(one)}, and no request of this caller could be made "
                f"for it; the proxy serves {mask(rule.account)}.",
                hint="Remove the accountId header or send that account. Others can be listed in "
                "accounts of the caller, or in upstream.account_allow with account_policy = allow.",
            )
    return sent[0]


def _mismatch(rule: AccountRule, differing: tuple[str, ...], why: str) -> AccountMismatch:
    return AccountMismatch(
        f"The request names account {mask(differing[0])}, this proxy serves "
        f"{mask(rule.account)}, and {why}.",
        hint=(
            "Remove the accountId header (the proxy adds its own; a sub-account belongs into "
            "the path or body), or change upstream.account_policy or upstream.account_override_money."
        ),
    )
