"""How many tokens are proposed, by what steps cost and how many proposals are accepted."""

from __future__ import annotations

import pytest

from tqchat.engine.decoding.payoff import MAX_BALANCE, SHARE_AT_RISK, START_BALANCE, Payoff


def timed(row_cost: float = 0.15) -> Payoff:
    """After a few single steps of a second, and proposals of such a cost that were all accepted."""
    payoff = Payoff()
    for _ in range(5):
        payoff.stepped(1.0, read_ahead=True)
    for _ in range(10):
        payoff.verified(8, 8, 1 + 8 * row_cost, established=True)
    return payoff


def test_nothing_is_proposed_before_a_step_was_timed() -> None:
    payoff = Payoff()
    assert payoff.proposals(8, established=True) == 0
    payoff.stepped(1.0, read_ahead=True)
    assert payoff.proposals(8, established=True) > 0


@pytest.mark.parametrize(("row_cost", "least", "most"), [(0.02, 11, 11), (0.15, 8, 11), (1.2, 0, 0)])
def test_more_is_proposed_where_rows_are_cheap(row_cost: float, least: int, most: int) -> None:
    assert least <= timed(row_cost).proposals(11, established=True) <= most


def test_fewer_are_proposed_while_they_are_rejected_and_more_again_later() -> None:
    payoff = timed()
    before = payoff.proposals(11, established=True)
    tried = 0
    while (count := payoff.proposals(11, established=True)) and tried < 50:
        payoff.verified(count, 0, 1 + 0.15 * count, established=True)
        tried += 1
    assert tried < 50
    assert payoff.proposals(11, established=False) == 0, "the balance is spent"
    for _ in range(200):
        payoff.stepped(1.0, read_ahead=True)
    assert 0 < payoff.proposals(11, established=False) < before


@pytest.mark.parametrize("row_cost", [0.05, 0.3, 1.0])
def test_proposals_that_are_always_wrong_cost_next_to_nothing(row_cost: float) -> None:
    payoff, seconds, tokens = Payoff(), 0.0, 1000
    for _ in range(tokens):
        if count := payoff.proposals(11, established=False):
            cost = 1 + row_cost * count
            payoff.verified(count, 0, cost, established=False)
        else:
            cost = 1.0
            payoff.stepped(cost, read_ahead=True)
        seconds += cost
    # Until it has been measured, a row may cost more than expected.
    assert seconds < tokens * (1 + 2 * SHARE_AT_RISK) + START_BALANCE * row_cost / 0.15


@pytest.mark.parametrize(("row_cost", "most_rows"), [(0.05, 5), (0.2, 5), (0.4, 5), (0.6, 3)])
def test_a_reply_in_which_nothing_is_accepted_loses_at_most_one_percent(
    row_cost: float, most_rows: int
) -> None:
    """Of 160 tokens, as ``lab bench --what drafting`` times."""
    payoff, rows = Payoff(), 0
    for _ in range(160):
        if count := payoff.proposals(11, established=False):
            payoff.verified(count, 0, 1 + row_cost * count, established=False)
            rows += count
        else:
            payoff.stepped(1.0, read_ahead=True)
    assert 0 < rows <= most_rows
    assert rows * row_cost <= 0.01 * 160


def test_what_was_saved_does_not_pay_for_long() -> None:
    payoff = timed(0.05)
    lost = 0.0
    while (count := payoff.proposals(11, established=False)) and lost < 100:
        payoff.verified(count, 0, 1 + 0.15 * count, established=False)
        lost += 0.15 * count
    assert lost < 2 * MAX_BALANCE


def test_one_slow_step_is_not_taken_for_the_price_of_rows() -> None:
    payoff = timed()
    payoff.verified(8, 8, 100.0, established=True)
    assert payoff.proposals(11, established=True) > 0
