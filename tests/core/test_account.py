import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.account import AccountDecision, AccountRule, decide_account
from proxy.core.routes import Kind
from proxy.errors import AccountMismatch

OURS = "0b0b0b0b-0000-4000-8000-acc000000001"
OTHER = "1c1c1c1c-0000-4000-8000-acc000000002"
THIRD = "2d2d2d2d-0000-4000-8000-acc000000003"


def decide(policy, *sent, kind=Kind.READ, allowed=(), money=False):
    rule = AccountRule(OURS, policy, frozenset(allowed), override_money=money)
    return decide_account(rule, sent=sent, kind=kind)


@pytest.mark.parametrize("policy", ["override", "fill", "allow"])
@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("sent", [(), (OURS,), (OURS.upper(),), (OURS, OURS.upper())])
def test_no_id_or_our_own_id_goes_out_as_ours(policy, kind, sent):
    assert decide(policy, *sent, kind=kind) == AccountDecision(OURS)


@pytest.mark.parametrize("kind", [Kind.READ, Kind.WRITE])
@pytest.mark.parametrize("sent", [(OTHER,), (OURS, OTHER), (OTHER, THIRD)])
def test_override_replaces_another_id_and_says_so(kind, sent):
    assert decide("override", *sent, kind=kind) == AccountDecision(OURS, replaced=OTHER)


@pytest.mark.parametrize("sent", [(OTHER,), (OURS, OTHER), (OTHER, THIRD)])
def test_override_moves_no_money_for_an_account_nobody_meant(sent):
    with pytest.raises(AccountMismatch, match="money"):
        decide("override", *sent, kind=Kind.MONEY)


def test_override_moves_money_where_a_setting_allows_it():
    decision = decide("override", OTHER, kind=Kind.MONEY, money=True)
    assert decision == AccountDecision(OURS, replaced=OTHER)


@pytest.mark.parametrize("kind", list(Kind))
def test_fill_passes_the_callers_id_on(kind):
    assert decide("fill", OTHER, kind=kind) == AccountDecision(OTHER)


@pytest.mark.parametrize("kind", list(Kind))
def test_allow_passes_a_listed_id_on(kind):
    assert decide("allow", OTHER, kind=kind, allowed=[OTHER]) == AccountDecision(OTHER)


@pytest.mark.parametrize("kind", list(Kind))
def test_allow_refuses_an_id_that_is_not_listed(kind):
    with pytest.raises(AccountMismatch, match=r"upstream\.account_allow"):
        decide("allow", OTHER, kind=kind, allowed=[THIRD])


@pytest.mark.parametrize("policy", ["fill", "allow"])
@pytest.mark.parametrize("sent", [(OTHER, THIRD), (OURS, OTHER)])
def test_several_different_ids_are_never_chosen_from(policy, sent):
    with pytest.raises(AccountMismatch, match="several"):
        decide(policy, *sent, allowed=[OTHER, THIRD])


@given(
    st.sampled_from(["override", "fill", "allow"]),
    st.sampled_from(list(Kind)),
    st.lists(st.sampled_from([OURS, OTHER, THIRD, OURS.upper()]), max_size=3, unique=True),
    st.sets(st.sampled_from([OTHER, THIRD])),
    st.booleans(),
)
def test_what_goes_out_is_ours_or_an_id_the_policy_lets_through(policy, kind, sent, allowed, money):
    try:
        decision = decide(policy, *sent, kind=kind, allowed=allowed, money=money)
    except AccountMismatch:
        return
    permitted = {"override": set(), "fill": set(sent), "allow": set(sent) & allowed}[policy]
    assert decision.account in {OURS} | permitted


def test_a_mismatch_masks_both_ids_and_says_what_to_do():
    with pytest.raises(AccountMismatch) as caught:
        decide("override", OTHER, kind=Kind.MONEY)
    text = f"{caught.value.description} {caught.value.hint}"
    assert OTHER not in text
    assert OURS not in text
    assert "1c1c…0002" in text
    assert "0b0b…0001" in text
    assert caught.value.hint
    assert (caught.value.code, caught.value.status) == ("account_mismatch", 403)


def test_a_short_id_is_masked_whole():
    with pytest.raises(AccountMismatch) as caught:
        decide("override", "short-id", kind=Kind.MONEY)
    assert "short" not in caught.value.description
