"""Shares: a burst, then so much a second, each key its own, and no more keys than are kept."""

from swarmd.net.shares import Shares


def test_a_share_is_a_burst_and_then_so_many_a_second() -> None:
    shares = Shares(burst=3, per_s=2.0, kept=8)
    assert [shares.take("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert shares.take("b", 0.0), "another's share is its own"
    assert [shares.take("a", 0.5) for _ in range(2)] == [True, False]
    assert sum(shares.take("a", 1000.0) for _ in range(9)) == 3, "it doesn't grow beyond the burst"


def test_only_so_many_shares_are_kept() -> None:
    shares = Shares(burst=1, per_s=1.0, kept=2)
    assert [shares.take(key, 0.0) for key in "abc"] == [True] * 3
    assert shares.take("a", 0.0), "forgotten"
    assert not shares.take("c", 0.0), "used lately, kept"


def test_who_takes_much_at_once_waits_for_it() -> None:
    shares = Shares(burst=2, per_s=1.0, kept=8)
    assert shares.take("a", 0.0, amount=5.0)
    assert not shares.take("a", 3.9)
    assert not shares.has_room("a", 3.9)
    assert shares.has_room("a", 4.0)
    assert shares.take("a", 4.0)
