"""Decides from measured times and acceptance how many tokens to propose, so that drafting costs little."""

from __future__ import annotations

from collections import deque

START_BALANCE = 0.4
"""Single steps that proposals may cost before any was accepted."""

MAX_BALANCE = 4.0
"""Most single steps that later proposals may cost, however many were saved before."""

SHARE_AT_RISK = 0.005
"""Share of all time that proposals may cost while none is accepted."""

FIRST_ROW_COST = 0.25
"""Cost of verifying a token, as a share of a single step, until it has been measured."""

MAX_SURPRISE = 2.0
"""Proposals are charged what they took, up to so many times what was expected: longer times are often of
other programs."""

MAX_ROW_COST = 1.5
"""Longer times are of other programs."""

FIRST_ACCEPTANCE = 0.8
DECAY = 0.9
"""Weight of earlier proposals' acceptance after each verified step."""

TIMED_STEPS = 15
"""Single steps whose median time is taken."""


class Acceptance:
    """Running share of proposed tokens that are accepted, given that those before them are."""

    def __init__(self) -> None:
        self._verified = 2.0
        self._accepted = FIRST_ACCEPTANCE * self._verified

    @property
    def rate(self) -> float:
        return self._accepted / self._verified

    def add(self, proposed: int, accepted: int) -> None:
        """Count a step's tokens; those after the first rejected one say nothing."""
        self._verified = DECAY * self._verified + min(accepted + 1, proposed)
        self._accepted = DECAY * self._accepted + accepted


class Payoff:
    """Decides how many tokens are worth drafting.

    All costs are in single steps of the model. A balance limits losses: proposals are charged to it, accepted
    tokens and, slowly, plain decoding fill it. So drafting ends where it does not pay, is tried again from
    time to time, and costs at most ``SHARE_AT_RISK`` of the time in the long run.
    """

    def __init__(self) -> None:
        self._step_times: deque[float] = deque(maxlen=TIMED_STEPS)
        self._row_cost = FIRST_ROW_COST
        self._wait_cost = 0.0
        self._balance = START_BALANCE
        self._acceptance = {False: Acceptance(), True: Acceptance()}

    @property
    def _step_time(self) -> float | None:
        """Median seconds of a single step; ``None`` before one was timed."""
        times = sorted(self._step_times)
        return times[len(times) // 2] if times else None

    def proposals(self, most: int, established: bool) -> int:
        """The number of tokens, at most ``most``, that promises the most tokens per second; 0 for none.

        Args:
            established: Whether tokens were accepted from the same place before.
        """
        if not self._step_times:
            return 0
        rate, cost = self._acceptance[established].rate, max(self._row_cost, 0.01)
        best, best_speed, expected, likelihood = 0, 1.0, 1.0, 1.0
        for count in range(1, min(most, int(self._balance / cost)) + 1):
            likelihood *= rate
            expected += likelihood
            speed = expected / (1 + count * cost)
            if speed > best_speed:
                best, best_speed = count, speed
        return best

    def verified(self, proposed: int, accepted: int, seconds: float, established: bool) -> None:
        """Learn from a step with proposals."""
        self._acceptance[established].add(proposed, accepted)
        charged = self._row_cost
        if step := self._step_time:
            measured = min(max((seconds / step - 1) / proposed, 0.0), MAX_ROW_COST)
            charged = max(charged, min(measured, MAX_SURPRISE * charged))
            self._row_cost += min(1.0, proposed / 8) * 0.3 * (measured - self._row_cost)
        self._balance = min(self._balance + accepted - proposed * charged, MAX_BALANCE)

    def stepped(self, seconds: float, read_ahead: bool) -> None:
        """Learn from a single step. One that was not submitted ahead of time is charged for the wait."""
        step = self._step_time
        if read_ahead or step is None:
            self._step_times.append(seconds)
        else:
            measured = min(max(seconds / step - 1, -0.5), 0.5)
            self._wait_cost += 0.2 * (measured - self._wait_cost)
            self._balance -= max(self._wait_cost, 0.0)
        self._balance = min(self._balance + SHARE_AT_RISK, MAX_BALANCE)
