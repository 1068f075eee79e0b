"""Routing: shares in proportion to speed, bans with bounds, newcomers tried but not flooded."""

import math
import random
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.config import RoutingPolicy
from swarmd.swarm.hops import routing
from swarmd.swarm.hops.routing import BAN_FIRST_SECONDS, BAN_LIMIT_SECONDS, DEBT_MICROBATCHES, Router

SPEEDS = {"slow": 1.0, "middling": 2.0, "fast": 4.0}  # microbatches per second


def work(router: Router, speeds: dict[str, float], hops: int) -> Counter[str]:
    """Chooses so often; every choice is answered at once."""
    counts: Counter[str] = Counter()
    for _ in range(hops):
        peer = router.choose(speeds, now=0.0)
        assert peer is not None
        counts[peer] += 1
        router.sent(peer)
        router.measured(peer, 1.0 / speeds[peer])
        router.returned(peer)
    return counts


@pytest.mark.parametrize(("policy", "tolerance"), [("iwrr", 0.05), ("weighted", 0.10)])
def test_shares_are_in_proportion_to_speed(policy: RoutingPolicy, tolerance: float) -> None:
    router = Router(random.Random(1), policy)
    work(router, SPEEDS, 50)  # to be measured
    counts = work(router, SPEEDS, 7000)
    for peer, speed in SPEEDS.items():
        assert counts[peer] == pytest.approx(1000 * speed, rel=tolerance)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.5, 20.0), min_size=1))
def test_any_speeds_are_shared_in_proportion_from_any_moment_on(speeds: dict[str, float]) -> None:
    """A peer is never further from its due share than by what it does while the slowest does one."""
    router = Router(random.Random(2))
    work(router, speeds, 20 * len(speeds))
    counts = work(router, speeds, 300)
    whole = sum(speeds.values())
    for peer, speed in speeds.items():
        assert abs(counts[peer] - 300 * speed / whole) <= 2 + speed / min(speeds.values())


def test_a_queue_in_front_of_a_peer_counts() -> None:
    """Without answers an equal peer is not chosen twice before the others."""
    router = Router(random.Random(0))
    peers = ["a", "b", "c", "d"]
    chosen = []
    for _ in range(4):
        peer = router.choose(peers, 0.0)
        assert peer is not None
        router.sent(peer)
        chosen.append(peer)
    assert sorted(chosen) == peers


def test_a_change_of_speed_is_followed() -> None:
    router = Router(random.Random(3))
    work(router, {"a": 1.0, "b": 1.0}, 100)
    work(router, {"a": 1.0, "b": 8.0}, 100)
    counts = work(router, {"a": 1.0, "b": 8.0}, 900)
    assert counts["b"] == pytest.approx(800, rel=0.05)


def test_a_newcomer_neither_floods_nor_starves() -> None:
    router = Router(random.Random(4))
    work(router, {"a": 2.0, "b": 2.0}, 1000)
    counts = work(router, {"a": 2.0, "b": 2.0, "new": 2.0}, 30)
    assert 8 <= counts["new"] <= 12


def test_many_unmeasured_peers_are_all_tried_at_once() -> None:
    router = Router(random.Random(5))
    work(router, {"a": 2.0}, 10)
    chosen = Counter(router.choose(["a", "n1", "n2", "n3"], 0.0) for _ in range(8))
    assert set(chosen) == {"a", "n1", "n2", "n3"}
    assert max(chosen.values()) <= 3


def test_ties_are_drawn_from_the_seed() -> None:
    def draws(seed: int) -> list[str | None]:
        router = Router(random.Random(seed))
        return [router.choose(["a", "b", "c"], 0.0) for _ in range(30)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_the_order_in_which_candidates_come_does_not_matter() -> None:
    one, other = Router(random.Random(6)), Router(random.Random(6))
    for _ in range(30):
        assert one.choose(["a", "b", "c"], 0.0) == other.choose(["c", "a", "b"], 0.0)


def test_bans_double_up_to_a_limit_and_end_with_an_answer() -> None:
    router, now, lengths = Router(random.Random(0)), 100.0, []
    for _ in range(8):
        router.failed("a", now)
        assert router.choose(["a"], now) is None
        until = router.next_unban(["a"])
        lengths.append(until - now)
        assert router.choose(["a"], until - 0.001) is None
        assert router.choose(["a"], until) == "a", "every healthy peer is tried again"
        now = until
    assert lengths == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert (lengths[0], lengths[-1]) == (BAN_FIRST_SECONDS, BAN_LIMIT_SECONDS)
    router.measured("a", 0.1)
    router.failed("a", now)
    assert router.next_unban(["a"]) - now == BAN_FIRST_SECONDS


def test_a_heartbeat_lifts_a_ban_but_not_its_length() -> None:
    router = Router(random.Random(0))
    router.failed("a", 0.0)
    router.lift("a")
    assert router.choose(["a"], 0.0) == "a"
    router.failed("a", 0.0)
    assert router.next_unban(["a"]) == 2 * BAN_FIRST_SECONDS


def test_banned_peers_leave_the_work_to_the_others() -> None:
    router = Router(random.Random(0))
    router.failed("a", 0.0)
    assert {router.choose(["a", "b"], 1.0) for _ in range(5)} == {"b"}


def test_of_nobody_nobody_is_chosen() -> None:
    assert Router(random.Random(0)).choose([], 0.0) is None


def test_who_left_is_forgotten() -> None:
    router = Router(random.Random(0))
    router.measured("a", 9.0)
    router.failed("a", 0.0)
    router.drop("a")
    assert router.seconds("a") == routing.NEWCOMER_SECONDS
    assert router.choose(["a"], 0.0) == "a"


def test_answers_of_no_time_at_all_do_no_harm() -> None:
    router = Router(random.Random(0))
    router.measured("a", 0.0)
    router.measured("b", 1.0)
    counts = Counter(router.choose(["a", "b"], 0.0) for _ in range(100))
    assert counts["a"] >= 98
    router.returned("stranger")
    router.lift("stranger")


@pytest.mark.parametrize("policy", get_args(RoutingPolicy))
@pytest.mark.parametrize("lie", [math.nan, math.inf, -math.inf, 1e300, -1.0])
def test_a_peer_that_lies_of_its_speed_spoils_nothing_for_the_others(policy: RoutingPolicy, lie: float) -> None:
    router = Router(random.Random(0), policy)
    work(router, {"fast": 2.0, "slow": 1.0}, 30)
    router.choose(["fast", "slow", "liar", "silent liar"], 0.0)
    for _ in range(3):
        router.choose(["liar"], 0.0)
        router.measured("liar", lie)
        router.hint("silent liar", lie)
    counts = work(router, {"fast": 2.0, "slow": 1.0}, 300)
    assert counts["fast"] >= 175
    assert counts["slow"] >= 75 or policy == "p2c", "which has no queue to flee from here"
    assert router.choose(["fast", "slow", "liar", "silent liar"], 0.0) is not None
    assert router.choose(["fast", "slow"], 0.0, lie) in ("fast", "slow"), "of the time that is left in the step, too"


def test_near_the_end_of_a_step_a_slow_peer_gets_nothing_that_all_would_wait_for() -> None:
    router = Router(random.Random(0))
    router.measured("fast", 1.0)
    router.measured("slow", 10.0)
    early = [router.choose(["fast", "slow"], 0.0, 60.0) for _ in range(22)]
    assert early.count("slow") == 2
    late = [router.choose(["fast", "slow"], 0.0, 5.0) for _ in range(22)]
    assert late.count("slow") == 0
    assert router.choose(["slow"], 0.0, 0.0) == "slow", "when there is no other"


def test_who_was_away_is_owed_a_few_microbatches_only() -> None:
    """It doesn't get all of them until it has caught up."""
    router = Router(random.Random(0))
    work(router, {"a": 1.0, "b": 1.0}, 20)
    router.failed("b", 0.0)
    work(router, {"a": 1.0, "b": 1.0}, 100)
    router.lift("b")
    counts = work(router, {"a": 1.0, "b": 1.0}, 40)
    assert counts["b"] - counts["a"] == pytest.approx(DEBT_MICROBATCHES, abs=2)


def test_a_peer_behind_a_thin_line_does_not_hoard() -> None:
    """Its device would be as fast as the other, but every second microbatch is stuck on its line."""
    router, stuck, most = Router(random.Random(0)), 0, 0
    work(router, {"thin": 1.0, "usual": 1.0}, 10)
    for _ in range(1000):
        peer = router.choose(["thin", "usual"], 0.0)
        assert peer is not None
        router.sent(peer)
        if peer == "usual":
            router.returned("usual")
        else:
            stuck += 1
            if stuck % 2 == 0:
                router.returned("thin")
        most = max(most, router.outstanding("thin"))
    assert most <= DEBT_MICROBATCHES + 2


SIX = [f"p{number}" for number in range(6)]


def test_the_better_of_two_is_the_one_with_the_smaller_expected_wait() -> None:
    """With two candidates both are always drawn."""
    router = Router(random.Random(0), "p2c")
    router.choose(["a", "b"], 0.0)
    router.measured("a", 1.0)
    router.measured("b", 3.0)
    chosen = []
    for _ in range(8):
        peer = router.choose(["a", "b"], 0.0)
        assert peer is not None
        router.sent(peer)
        chosen.append(peer)
    assert chosen[:2] == ["a", "a"], "waits of 1 and 2 seconds beside 3"
    assert Counter(chosen) == {"a": 6, "b": 2}
    for _ in range(6):
        router.returned("a")
    assert router.choose(["a", "b"], 0.0) == "a"


def test_what_a_card_says_waits_there_counts_until_the_next_card() -> None:
    router = Router(random.Random(0), "p2c")
    router.choose(["a", "b"], 0.0)
    router.hint("a", 1.0, 5)
    router.hint("b", 1.0, 0)
    assert {router.choose(["a", "b"], 0.0) for _ in range(20)} == {"b"}
    router.hint("a", 1.0, -7)
    router.hint("b", 1.0, 1)
    assert {router.choose(["a", "b"], 0.0) for _ in range(20)} == {"a"}


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(SIX), st.integers(0, 9), min_size=2), st.integers(0, 99))
def test_the_worst_of_all_is_never_the_better_of_two(queues: dict[str, int], seed: int) -> None:
    router = Router(random.Random(seed), "p2c")
    router.choose(queues, 0.0)
    for peer, queue in queues.items():
        router.measured(peer, 1.0)
        router.hint(peer, 1.0, queue)
    worst = max(queues.values())
    chosen = {router.choose(queues, 0.0) for _ in range(50)}
    if list(queues.values()).count(worst) == 1:
        assert next(peer for peer in queues if queues[peer] == worst) not in chosen
    assert chosen <= queues.keys()


@pytest.mark.parametrize("policy", get_args(RoutingPolicy))
def test_every_policy_keeps_the_bans_and_knows_one_peer_from_none(policy: RoutingPolicy) -> None:
    router = Router(random.Random(0), policy)
    router.failed("a", 0.0)
    assert {router.choose(["a", "b"], 1.0) for _ in range(10)} == {"b"}
    assert router.choose(["a"], 1.0) is None
    assert router.choose([], 1.0) is None


def test_a_peer_is_believed_until_it_is_measured() -> None:
    router = Router(random.Random(0))
    router.choose(["fast", "slow"], 0.0)
    router.measured("fast", 1.0)
    router.hint("slow", 10.0)
    chosen = [router.choose(["fast", "slow"], 0.0) for _ in range(22)]
    assert 1 <= chosen.count("slow") <= 3
    router.measured("slow", 1.0)
    router.hint("slow", 10.0)
    assert router.seconds("slow") == 1.0
