"""The memory budget of a conversation's cache, and the length it is expected to reach."""

from __future__ import annotations

from tqchat.engine.memory.budget import expected_tokens, memory_budget

MIB = 1 << 20


def test_the_budget_is_a_share_of_what_the_weights_leave_unless_configured() -> None:
    assert memory_budget(1000 * MIB, 200 * MIB) == 400 * MIB
    assert memory_budget(100 * MIB, 200 * MIB) == 0
    assert memory_budget(1000 * MIB, 200 * MIB, configured=7) == 7


def test_a_conversation_is_expected_to_double_within_the_context_limit() -> None:
    assert expected_tokens(0, None) == 8192
    assert expected_tokens(10_000, None) == 20_000
    assert expected_tokens(10_000, 16_384) == 16_384
    assert expected_tokens(0, 4096) == 4096
