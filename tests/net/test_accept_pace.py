"""Connections that others open: shares for addresses and for peers that aren't known, and nobody locked out."""

import dataclasses
import random

from swarmd.net.accept_pace import IN_ALL, AcceptPace, site_of
from swarmd.net.libp2p import AGAIN_S
from swarmd.net.limits import TransportLimits

LIMITS = TransportLimits()
FLOOD_PER_S = 1000
LONG = 2  # seconds, by which a flood has used up its burst
HERE, THERE = "192.0.2.1", "198.51.100.7"


def flood(pace: AcceptPace, seconds: int, host: str = HERE, since: float = 0.0) -> tuple[int, int]:
    """The connections of a flood that begin their handshake, and those of them that go on, each as a new peer."""
    shaken = gone_on = 0
    for number in range(seconds * FLOOD_PER_S):
        now = since + number / FLOOD_PER_S
        if pace.admit(host, now):
            shaken += 1
            gone_on += pace.admit_peer(f"{host} {now}", host, now, known=False)
    return shaken, gone_on


def test_a_flood_gets_its_share_and_no_more() -> None:
    pace = AcceptPace(LIMITS)
    shaken, gone_on = flood(pace, LONG)
    assert abs(shaken - LIMITS.handshakes_burst - LONG * LIMITS.handshakes_per_s) <= 1
    assert abs(gone_on - LIMITS.strangers_burst - LONG * LIMITS.strangers_per_s) <= 1


def test_a_flood_keeps_nobody_out_who_comes_from_elsewhere() -> None:
    pace = AcceptPace(LIMITS)
    flood(pace, LONG)
    assert pace.admit(THERE, LONG)
    assert pace.admit_peer("newcomer", THERE, LONG, known=False)


def test_a_flood_from_many_addresses_keeps_no_known_peer_out() -> None:
    pace = AcceptPace(LIMITS)
    assert pace.admit(THERE, 0.0)
    assert pace.admit_peer("member", THERE, 0.0, known=True)
    admitted = sum(pace.admit(f"10.0.{number // 250}.{number % 250}", 1.0) for number in range(5000))
    assert admitted == LIMITS.handshakes_burst * IN_ALL
    assert not pace.admit("203.0.113.9", 1.0)
    assert pace.admit(THERE, 1.0)
    assert pace.admit_peer("member", THERE, 1.0, known=True)


def tries_s(pace: AcceptPace, rng: random.Random, *, known: bool) -> float:
    """The seconds until an honest peer behind the address of a flood is admitted, which tries again and again."""
    flood(pace, LONG)
    second = float(LONG)
    while True:
        due = [(second + rng.random(), "flood") for _ in range(FLOOD_PER_S)]
        due += [(second + AGAIN_S * (number + rng.random()), "honest") for number in range(int(1 / AGAIN_S))]
        for now, who in sorted(due):
            if pace.admit(HERE, now):
                is_known = known and who == "honest"
                if pace.admit_peer(f"{who} {now}", HERE, now, known=is_known) and who == "honest":
                    return now - LONG
        second += 1.0


def test_who_is_behind_the_address_of_a_flood_comes_in_within_seconds() -> None:
    """By chance, as one of a thousand and fifty a second: a member mostly at once, a newcomer after some seconds."""
    seeds = range(10)
    members = [tries_s(AcceptPace(LIMITS), random.Random(seed), known=True) for seed in seeds]
    newcomers = [tries_s(AcceptPace(LIMITS), random.Random(seed), known=False) for seed in seeds]
    assert max(members) < 5.0
    assert max(newcomers) < 10.0


def test_when_a_flood_is_over_its_address_is_like_any_other() -> None:
    pace = AcceptPace(LIMITS)
    flood(pace, LONG)
    assert pace.admit(HERE, LONG + 0.5)
    assert pace.admit_peer("newcomer", HERE, LONG + 0.5, known=False)


def test_one_address_holds_so_many_connections() -> None:
    limits = dataclasses.replace(LIMITS, connections_per_address=2)
    pace = AcceptPace(limits)
    for _ in range(2):
        assert pace.admit(HERE, 0.0)
        pace.opened(HERE)
    assert not pace.admit(HERE, 0.0)
    assert pace.admit(THERE, 0.0)
    pace.closed(HERE)
    assert pace.admit(HERE, 0.0)


def test_a_peer_that_was_turned_away_may_come_again_after_seconds() -> None:
    pace = AcceptPace(LIMITS)
    pace.turn_away("p", 0.0)
    assert not pace.admit_peer("p", HERE, LIMITS.turned_away_s - 0.1, known=True)
    assert pace.admit_peer("q", HERE, 0.0, known=False)
    assert pace.admit_peer("p", HERE, LIMITS.turned_away_s, known=False)
    assert LIMITS.turned_away_s <= 10.0


def test_an_ipv6_address_counts_as_its_network() -> None:
    assert site_of("2001:db8:1:2:3::4") == site_of("2001:db8:1:2::9") != site_of("2001:db8:1:3::9")
    assert site_of("::ffff:192.0.2.1") == site_of("192.0.2.1") != site_of("192.0.2.2")
    assert site_of("fe80::1%eth0") == site_of("fe80::2")
    assert site_of("") == ""
