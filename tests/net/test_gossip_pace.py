"""Gossip: each author has a pace, and inventing authors is of no use."""

from swarmd.net.gossip_pace import SURPLUS_BURST, WORD_BYTES, GossipPace
from swarmd.net.limits import TransportLimits

LIMITS = TransportLimits()
MINUTE_S = 60


def flood(pace: GossipPace, authors: list[str], *, known: bool, nbytes: int = 100, per_s: int = 200) -> int:
    """The messages that are passed on of a minute's flood, brought by one peer."""
    heard = 0
    for number in range(MINUTE_S * per_s):
        author, now = authors[number % len(authors)], number / per_s
        if pace.has_room(author, "flooder", known, now):
            pace.count(author, "flooder", known, now, nbytes)
            heard += 1
    return heard


def test_an_author_has_a_pace() -> None:
    pace = GossipPace(LIMITS)
    assert flood(pace, ["a"], known=True) <= LIMITS.gossip_burst + MINUTE_S * LIMITS.gossip_per_s
    assert pace.has_room("b", "flooder", True, MINUTE_S), "others are heard, whoever brings them"


def test_large_messages_count_for_several() -> None:
    few, many = (flood(GossipPace(LIMITS), ["a"], known=True, nbytes=nbytes) for nbytes in (4 * WORD_BYTES, 100))
    assert few * 4 < many


def test_authors_that_are_made_up_share_a_pace() -> None:
    made_up = [f"nobody {number}" for number in range(5000)]
    pace = GossipPace(LIMITS)
    heard = flood(pace, made_up, known=False)
    assert heard <= LIMITS.unknown_gossip_burst + MINUTE_S * LIMITS.unknown_gossip_per_s
    assert pace.has_room("a newcomer", "somebody else", False, MINUTE_S)


def test_what_is_said_in_anothers_name_takes_nothing_of_its_share() -> None:
    """A message counts only once its signature is checked."""
    pace = GossipPace(LIMITS)
    for _ in range(1000):
        assert pace.has_room("a", "liar", True, 0.0)


def test_the_pace_leaves_an_honest_peer_room() -> None:
    """It says its card every 2 s, and sums its stage up every 10 s; after a cut its last ones come at once."""
    pace = GossipPace(LIMITS)
    times = sorted([2.0 * n for n in range(30)] + [10.0 * n for n in range(6)] + [30.0] * 10)
    for now in times:
        assert pace.has_room("a", "b", True, now)
        pace.count("a", "b", True, now, 8 << 10)


def test_an_author_that_brings_many_more_than_it_may_floods() -> None:
    pace = GossipPace(LIMITS)
    assert not any(pace.is_flood("a", 0.0) for _ in range(int(SURPLUS_BURST)))
    assert pace.is_flood("a", 0.0)
    assert not pace.is_flood("b", 0.0)
    assert not pace.is_flood("a", 2.0)
