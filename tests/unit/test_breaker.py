"""Laws of the circuit breaker: what opens it, what it lets through, and what closes it again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.breaker import FAILURES_MAX, OPEN_S, WITHIN_S, Breaker, Breakers, Permit, State


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Tried:
    """A breaker and its clock, driven by a script: ``f`` fails, ``s`` succeeds, ``g`` is given up, a number waits."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.breaker = Breaker(self.clock)
        self.let_through = 0

    def run(self, script: str) -> State:
        for word in script.split():
            if word not in ("f", "s", "g"):
                self.clock.now_s += float(word)
                continue
            permit = self.breaker.enter()
            if permit is not None:
                self.let_through += 1
                self.end(word, permit)
        return self.breaker.state

    def end(self, word: str, permit: Permit) -> None:
        match word:
            case "f":
                self.breaker.failed(permit)
            case "s":
                self.breaker.succeeded(permit)
            case _:
                self.breaker.gave_up(permit)


FIVE = "f f f f f"
SCRIPTS = [
    # (number, script, state at its end, calls let through)
    # closed
    (1, "", State.CLOSED, 0),
    (2, "f f f f", State.CLOSED, 4),
    (3, FIVE, State.OPEN, 5),
    (4, "f f f f s f f f f", State.CLOSED, 9),  # not in a row
    (5, "f f f f s f f f f f", State.OPEN, 10),
    (6, "f 10 f 10 f 5 f 5 f", State.OPEN, 5),  # just within the time
    (7, "f 10 f 10 f 5 f 5.1 f", State.CLOSED, 5),  # the first one is too long ago
    (8, "f 10 f 10 f 5 f 5.1 f 1 f", State.OPEN, 6),  # but the later five are not
    (9, "f f f f g g g", State.CLOSED, 7),  # what was given up is no failure
    (10, "f f f f g f", State.OPEN, 6),  # nor a success
    # open
    (11, f"{FIVE} s s s", State.OPEN, 5),  # nobody gets through
    (12, f"{FIVE} 9.9 s", State.OPEN, 5),
    (13, f"{FIVE} 10", State.HALF_OPEN, 5),
    # half open
    (14, f"{FIVE} 10 s", State.CLOSED, 6),
    (15, f"{FIVE} 10 f", State.OPEN, 6),  # one failure is enough
    (16, f"{FIVE} 10 f 9.9", State.OPEN, 6),
    (17, f"{FIVE} 10 f 10", State.HALF_OPEN, 6),
    (18, f"{FIVE} 10 f 10 s", State.CLOSED, 7),
    (19, f"{FIVE} 10 g", State.HALF_OPEN, 6),
    (20, f"{FIVE} 10 g g s", State.CLOSED, 8),  # a probe that was given up makes room for the next one
    # closed again: it starts from nothing
    (21, f"{FIVE} 10 s f f f f", State.CLOSED, 10),
    (22, f"{FIVE} 10 s {FIVE}", State.OPEN, 11),
]


@pytest.mark.parametrize(("number", "script", "state", "let_through"), SCRIPTS)
def test_a_script_ends_in_its_state(number: int, script: str, state: State, let_through: int) -> None:
    tried = Tried()
    assert (tried.run(script), tried.let_through) == (state, let_through), f"case {number}"


def test_half_open_lets_one_call_through_at_a_time() -> None:
    tried = Tried()
    tried.run(f"{FIVE} 10")
    probe = tried.breaker.enter()
    assert probe is not None
    assert [tried.breaker.enter() for _ in range(3)] == [None, None, None]
    assert tried.breaker.succeeded(probe)
    assert tried.breaker.enter() is not None


def test_a_probe_that_does_not_come_back_is_not_waited_for() -> None:
    tried = Tried()
    tried.run(f"{FIVE} 10")
    first = tried.breaker.enter()
    tried.clock.now_s += OPEN_S
    second = tried.breaker.enter()
    assert first is not None and second is not None
    assert not tried.breaker.failed(first), "what the first one comes to is of no interest any more"
    assert tried.breaker.state is State.HALF_OPEN
    assert tried.breaker.succeeded(second)
    assert tried.breaker.state is State.CLOSED


def test_calls_that_began_before_it_opened_neither_close_nor_prolong_it() -> None:
    tried = Tried()
    late, later = tried.breaker.enter(), tried.breaker.enter()
    assert late is not None and later is not None
    tried.run(f"{FIVE} 5")
    assert not tried.breaker.succeeded(late)
    assert not tried.breaker.failed(later)
    assert tried.breaker.state is State.OPEN
    assert tried.breaker.wait_s() == OPEN_S - 5


def test_it_says_when_it_opens_and_closes_and_how_long_it_stays_open() -> None:
    tried = Tried()
    told = []
    for _ in range(FAILURES_MAX):
        permit = tried.breaker.enter()
        assert permit is not None
        told.append(tried.breaker.failed(permit))
    assert told == [False] * (FAILURES_MAX - 1) + [True]
    assert tried.breaker.wait_s() == OPEN_S
    tried.clock.now_s += OPEN_S + 1
    assert tried.breaker.wait_s() == 0
    permit = tried.breaker.enter()
    assert permit is not None and tried.breaker.succeeded(permit)
    permit = tried.breaker.enter()
    assert permit is not None and not tried.breaker.succeeded(permit), "it was closed already"


def test_upstreams_have_a_breaker_each() -> None:
    breakers = Breakers(Clock())
    for _ in range(FAILURES_MAX):
        permit = breakers.of("one").enter()
        assert permit is not None
        breakers.of("one").failed(permit)
    assert breakers.states(["one", "two"]) == {"one": State.OPEN, "two": State.CLOSED}


words = st.one_of(st.sampled_from(["f", "s", "g"]), st.floats(0, 2 * WITHIN_S).map(str))


@given(st.lists(words, max_size=60).map(" ".join))
def test_whatever_happened_an_upstream_that_answers_is_called_again(script: str) -> None:
    """No history leaves it shut for longer than ``OPEN_S``."""
    tried = Tried()
    tried.run(script)
    assert tried.run(f"{OPEN_S} s") is State.CLOSED
