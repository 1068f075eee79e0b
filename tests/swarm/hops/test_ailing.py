"""When a peer at which hops fail rests, for how long, and what it says of that."""

from swarmd.swarm.hops.ailing import FAILURES, REST_CEILING_SECONDS, REST_SECONDS, Ailing


def ill(now: float = 0.0) -> Ailing:
    it = Ailing()
    for _ in range(FAILURES):
        it.failed("a bug", now)
    return it


def test_some_failures_are_the_hops_and_several_in_a_row_the_peers() -> None:
    it = Ailing()
    assert [it.failed("a bug", 0.0) for _ in range(FAILURES - 1)] == [0.0] * (FAILURES - 1)
    assert not it.rests(0.0) and it.warning(0.0) == ""
    it.succeeded()
    assert [it.failed("a bug", 0.0) for _ in range(FAILURES)] == [0.0] * (FAILURES - 1) + [REST_SECONDS]
    assert it.rests(REST_SECONDS - 0.1) and not it.rests(REST_SECONDS)


def test_what_was_begun_before_a_rest_does_not_make_it_longer() -> None:
    it = ill()
    assert it.failed("a bug", 1.0) == REST_SECONDS - 1.0
    assert not it.rests(REST_SECONDS)


def test_after_several_failures_in_a_row_one_rests_longer_each_time_until_a_hop_ends_well() -> None:
    ailing, now, rests = Ailing(), 0.0, []
    for _ in range(FAILURES - 1):
        assert ailing.failed("why", now) == 0.0
        assert not ailing.warning(now)
    for _ in range(10):
        rests.append(ailing.failed("why", now))
        assert ailing.rests(now)
        assert ailing.failed("of a hop that was under way", now + 1) == rests[-1] - 1
        now += rests[-1]
        assert not ailing.rests(now)
        assert "one is tried again" in ailing.warning(now)
    assert rests[:3] == [REST_SECONDS, 2 * REST_SECONDS, 4 * REST_SECONDS]
    assert rests[-1] == REST_CEILING_SECONDS
    ailing.succeeded()
    assert not ailing.warning(now)
    assert ailing.failed("why", now) == 0.0


def test_the_warning_says_why_and_for_how_long() -> None:
    it = ill()
    assert "a bug" in it.warning(0.0) and "none is taken for 5 s" in it.warning(0.0)
    assert "one is tried again" in it.warning(REST_SECONDS)
