"""Dials to what strangers name: growing pauses, a share for all together, one address once a second."""

import dataclasses
import itertools

import pytest

from swarmd.net.addresses import Address
from swarmd.net.dial_pace import DialPace
from swarmd.net.limits import TransportLimits

LIMITS = TransportLimits()
HOUR = 3600


def at(number: int, port: int = 1) -> Address:
    return Address("ip4", f"10.0.{number // 250}.{number % 250}", port, "")


def dials(pace: DialPace, peer: str, until: int, address: Address | None = None, step: float = 0.5) -> list[float]:
    """The seconds at which a peer is dialled, in vain, by someone who always wants to."""
    times = []
    for tick in range(int(until / step)):
        now = tick * step
        admitted, why = pace.admit(peer, [address or at(1)], (), now)
        assert bool(admitted) != bool(why)
        if admitted:
            times.append(now)
            pace.failed(peer, admitted, "nothing answers", now)
    return times


def test_the_pauses_of_one_that_is_never_reached_double_up_to_a_ceiling() -> None:
    times = dials(DialPace(LIMITS), "p", HOUR)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert set(pauses[9:]) == {LIMITS.dial_pause_ceiling_s}


def test_one_that_was_met_is_looked_for_more_often() -> None:
    pace = DialPace(LIMITS)
    pace.met("p")
    times = dials(pace, "p", HOUR)
    assert times[-1] - times[-2] == LIMITS.dial_pause_met_s


def test_a_connection_ends_the_pause() -> None:
    pace = DialPace(LIMITS)
    dials(pace, "p", 600)
    assert pace.admit("p", [at(1)], (), 600.0)[1].startswith("nothing answers; it is dialled again in")
    pace.met("p")
    assert pace.admit("p", [at(1)], (), 602.0) == ([at(1)], "")


def test_a_new_address_is_tried_at_once_and_none_forgotten() -> None:
    pace = DialPace(LIMITS)
    dials(pace, "p", 600)
    assert pace.admit("p", [at(1), at(2)], (), 600.0) == ([at(2)], "")
    pace.failed("p", [at(2)], "nothing answers", 600.0)
    assert not pace.admit("p", [at(1), at(2)], (), 601.5)[0]


def test_all_that_never_worked_share_what_may_be_dialled() -> None:
    pace, count = DialPace(LIMITS), 0
    for second in range(600):
        for number in range(200):  # another name each time, and other addresses
            name = f"{second}/{number}"
            admitted, _ = pace.admit(name, [at(number, second + 1), at(number, 2 * second + 7)], (), float(second))
            count += len(admitted)
            if admitted:
                pace.failed(name, admitted, "nothing answers", float(second))
    assert count <= LIMITS.dials_burst + 600 * LIMITS.dials_per_s
    assert count >= LIMITS.dials_burst


def test_one_address_is_dialled_once_a_second_in_whosever_name() -> None:
    pace = DialPace(LIMITS)
    times = [tick / 10 for tick in range(1000) if pace.admit(f"p{tick}", [at(1)], (), tick / 10)[0]]
    assert len(times) == 100


def test_what_has_worked_is_dialled_whatever_others_use_up() -> None:
    pace = DialPace(dataclasses.replace(LIMITS, dials_burst=1))
    pace.met("p")
    assert pace.admit("q", [at(1)], (), 0.0) == ([at(1)], "")
    assert pace.admit("p", [at(1), at(2)], (at(1),), 0.0) == ([at(1)], "")
    assert pace.admit("p", [at(1), at(2)], (at(1),), 0.1) == ([at(1)], ""), "its connection broke at once"
    assert pace.admit("r", [at(3)], (), 0.1)[1].endswith("may not be there")


@pytest.mark.parametrize("met", [False, True])
def test_what_is_remembered_is_bounded(met: bool) -> None:
    pace = DialPace(dataclasses.replace(LIMITS, known_peers=100, dials_per_s=1e9))
    for number in range(1000):
        admitted, _ = pace.admit(f"p{number}", [at(number)], (), number / 10)
        if met:
            pace.met(f"p{number}")
        else:
            pace.failed(f"p{number}", admitted, "nothing answers", number / 10)
    assert len(pace._tried) == 100
    assert len(pace._places) <= 11
