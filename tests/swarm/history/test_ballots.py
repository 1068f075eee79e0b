"""Ballots between peers: who gives its word, whose record is proposed, when a step goes on without a majority."""

import asyncio
import dataclasses
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import OutOfRange, PeerFault, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.ballots import MEMORIES, SLEPT_SECONDS, Alone, Ballots, Mandate, Outranked
from swarmd.swarm.history.consensus import BALLOT_REACH
from swarmd.swarm.history.history import History
from swarmd.swarm.history.record import Record, build_return, genesis_hash
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.history.record_format import hash_of
from swarmd.swarm.wire.messages.commit import Accept, Prepare, Promise
from swarmd.swarm.wire.messages.common import NO_BALLOT, Ballot
from swarmd.swarm.wire.messages.fields import BALLOT_LIMIT
from tests.swarm.cards import card
from tests.swarm.fake_links import FakeLinks
from tests.swarm.no_disk import NoDisk
from tests.swarm.records import RUN, record, report

FORK_SECONDS = 60.0
MEMBERS = ("m0", "n0", "m1", "n1")  # of the records: these are the acceptors
FIRST = record(step=1, parent=genesis_hash(RUN))
SECOND = record(step=2, parent=FIRST.hash)
RIVAL = record(report(0), report(1, tokens=65), step=2, parent=FIRST.hash)


class Peer:
    """A member at version 1, that took part in its round."""

    def __init__(self, name: str, everyone: dict[str, FakeLinks]) -> None:
        self.links, self.living = FakeLinks(name, everyone), set(MEMBERS)
        self.history = History(RUN, cast("Any", self.links), cast("Any", NoDisk()))
        self.history.replace(FIRST, "digest")
        self.history.took_part(1)
        membership: Any = SimpleNamespace(own=card(name), is_live=lambda peer: peer in self.living)
        rng = random.Random(0)
        self.ballots = Ballots(RUN, cast("Any", self.links), membership, self.history, rng, FORK_SECONDS)

    async def seek(self, *, complete: bool = True) -> Mandate:
        return await self.ballots.seek(2, lambda: complete)

    async def propose(self, mandate: Mandate, it: Record = SECOND, *, complete: bool = True) -> Record:
        return (await self.ballots.propose(mandate, it, lambda: complete)).record

    async def prepare(self, ask: Prepare) -> Promise:
        return await self.ballots._answer_prepare(ask.ballot.peer, ask)


def four() -> dict[str, Peer]:
    everyone: dict[str, FakeLinks] = {}
    return {name: Peer(name, everyone) for name in MEMBERS}


def loop_seconds() -> float:
    return asyncio.get_running_loop().time()


# ------------------------------------------------------------------------------------------------- conductors


def test_who_is_first_to_ask_has_a_fresh_mandate_and_decides_its_record() -> None:
    async def main() -> None:
        peers = four()
        mandate = await peers["m0"].seek()
        assert (mandate.step, mandate.parent, mandate.bound, mandate.decided) == (2, FIRST.hash, None, None)
        assert mandate.fresh
        decided = await peers["m0"].propose(mandate)
        assert (decided.hash, decided.ballot, decided.forked) == (SECOND.hash, (1, "m0"), False)

    run_virtual(main())


def test_what_was_accepted_before_binds_whoever_takes_over() -> None:
    async def main() -> None:
        peers = four()
        await peers["m0"].propose(await peers["m0"].seek())
        peers["n0"].living.discard("m0")
        mandate = await peers["n0"].seek()
        assert mandate.bound is not None
        assert (mandate.bound.hash, mandate.ballot.number, mandate.fresh) == (SECOND.hash, 2, False)

    run_virtual(main())


@pytest.mark.parametrize("spoil", [lambda raw: b"2" + raw, lambda raw: raw[:-1], lambda raw: b""])
def test_what_was_accepted_and_can_not_be_read_is_not_taken_for_nothing(spoil: Callable[[bytes], bytes]) -> None:
    """A record that a later release's acceptor has accepted may be decided: a step isn't decided anew for it."""

    async def main() -> None:
        peers = four()
        await peers["m0"].propose(await peers["m0"].seek())
        for name in ("m0", "m1"):
            peers[name].links.deaf = True
        answer = peers["n1"].ballots._answer_prepare

        async def later(peer: str, ask: Prepare) -> Promise:
            promise = await answer(peer, ask)
            return dataclasses.replace(promise, record=spoil(bytes(promise.record)))

        peers["n1"].links.handle(Prepare, later)
        peers["n0"].living.discard("m0")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(FORK_SECONDS / 2):
                await peers["n0"].seek()
        peers["m1"].links.deaf = False
        mandate = await peers["n0"].seek()
        assert mandate.bound is not None
        assert mandate.bound.hash == SECOND.hash, "the others say what was accepted"

    run_virtual(main())


def test_what_is_proposed_again_is_proposed_in_the_bytes_that_came() -> None:
    async def main() -> None:
        peers = four()
        raw = SECOND.raw.replace(b",", b", ")
        mandate = await peers["m0"].seek()
        decided = await peers["m0"].propose(mandate, record_from_raw(RUN, raw))
        peers["n0"].living.discard("m0")
        mandate = await peers["n0"].seek()
        assert mandate.bound is not None
        again = await peers["n0"].propose(mandate, mandate.bound)
        assert again.hash == decided.hash == hash_of(raw) != SECOND.hash
        assert (again.raw.split(b"\n")[0], again.ballot) == (raw.split(b"\n")[0], (2, "n0"))

    run_virtual(main())


def test_a_decided_record_is_learned_from_an_acceptor_that_has_it() -> None:
    async def main() -> None:
        peers = four()
        peers["n1"].history.replace(SECOND, "digest")
        for name in ("m1", "n0"):
            peers[name].links.deaf = True
        mandate = await peers["m0"].seek()
        assert (mandate.decided, mandate.teller) == (SECOND, "n1"), "one is enough"

    run_virtual(main())


def test_nobody_leads_beside_one_that_is_alive() -> None:
    async def main() -> None:
        peers = four()
        await peers["m0"].seek()
        outsider = Peer("x", peers["m0"].links.everyone)  # no acceptor, so it has heard of no ballot
        with pytest.raises(Outranked, match="m0 leads step 2 under ballot 1"):
            await outsider.seek()
        assert (await outsider.seek()).ballot.number == 2, "it may insist"
        other = Peer("y", peers["m0"].links.everyone)
        other.living.discard("x")
        assert (await other.seek()).ballot.number == 3, "it waits for nobody who is gone"

    run_virtual(main())


def test_a_lower_ballot_decides_nothing_any_more() -> None:
    async def main() -> None:
        peers = four()
        old = await peers["m0"].seek()
        peers["n0"].living.discard("m0")
        await peers["n0"].propose(await peers["n0"].seek(), RIVAL)
        with pytest.raises(Outranked, match="under ballot 2"):
            await peers["m0"].propose(old)

    run_virtual(main())


@pytest.mark.parametrize("complete", [True, False])
def test_without_a_majority_a_step_goes_on_only_with_every_stage_at_hand(complete: bool) -> None:
    async def main() -> None:
        peers = four()
        for name in ("m1", "n1"):
            peers[name].links.deaf = True
        before = loop_seconds()
        try:
            async with asyncio.timeout(3 * FORK_SECONDS):
                mandate = await peers["m0"].seek(complete=complete)
        except TimeoutError:
            assert not complete
            assert peers["m0"].ballots.waiting == ""
            return
        assert complete
        assert loop_seconds() - before >= FORK_SECONDS
        assert mandate.forked
        assert (await peers["m0"].propose(mandate)).forked

    run_virtual(main())


def test_a_ballot_is_above_all_that_were_seen_for_the_step() -> None:
    """Not only by acceptors: one who leads without their majority may have told none of them."""

    async def main() -> None:
        it = four()["m0"]
        for step, number in ((2, 70), (2, 50), (3, 80), (2, BALLOT_LIMIT - 1)):
            it.ballots.see(step, number)
        assert (await it.seek()).ballot == Ballot(71, "m0")
        assert (await it.seek()).ballot == Ballot(72, "m0")

    run_virtual(main())


def test_what_one_acceptor_says_brings_nobody_out_of_the_reach_of_others() -> None:
    """It says that it has promised the highest number there is, again and again: the others decide all the same."""

    async def main() -> None:
        peers = four()

        async def lie(peer: str, ask: Any) -> Any:
            return Promise(False, Ballot(BALLOT_LIMIT - 2, "x"), NO_BALLOT, b"")

        peers["n1"].links.handle(Prepare, lie)
        for attempt in range(5):
            mandate = await peers["m0"].seek()
            assert mandate.ballot.number <= attempt * BALLOT_REACH + attempt + 1
            assert not mandate.forked

    run_virtual(main())


def test_meanwhile_it_says_whom_it_waits_for() -> None:
    async def main() -> None:
        peers = four()
        for name in ("m1", "n1"):
            peers[name].links.deaf = True
        seeking = asyncio.create_task(peers["m0"].seek())
        await asyncio.sleep(FORK_SECONDS / 2)
        assert peers["m0"].ballots.waiting == "a majority of the acceptors of step 2: 2 of 4 answer"
        seeking.cancel()

    run_virtual(main())


def test_there_is_no_reason_to_fork_once_the_acceptors_answer_again() -> None:
    async def main() -> None:
        peers = four()
        mandate = dataclasses.replace(await peers["m0"].seek(), forked=True)
        with pytest.raises(Outranked, match="answer again"):
            await peers["m0"].propose(mandate)

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- acceptors


def spoil(change: Callable[[Peer], None]) -> Peer:
    peer = Peer("n0", {})
    change(peer)
    return peer


def leave_history(peer: Peer) -> None:
    peer.history.crosses_at = 0


@pytest.mark.parametrize(
    ("change", "ask", "why"),
    [
        (lambda peer: None, Prepare(2, "another", Ballot(1, "m0")), "another history"),
        (lambda peer: peer.history.replace(FIRST, "digest"), Prepare(2, FIRST.hash, Ballot(1, "m0")), "took no part"),
        (leave_history, Prepare(2, FIRST.hash, Ballot(1, "m0")), "took no part"),
        (lambda peer: None, Prepare(1, "another", Ballot(1, "m0")), "is over, or another history's"),
    ],
)
def test_who_can_not_speak_for_a_step_gives_no_promise(change: Callable[[Peer], None], ask: Prepare, why: str) -> None:
    async def main() -> None:
        with pytest.raises(Refused, match=why):
            await spoil(change).prepare(ask)

    run_virtual(main())


@pytest.mark.parametrize(
    ("ballot", "trouble"),
    [(Ballot(1, "other"), PeerFault), (Ballot(0, "m0"), OutOfRange), (Ballot(BALLOT_LIMIT, "m0"), OutOfRange)],
)
def test_a_ballot_must_be_ones_own_and_leave_room_above_it(ballot: Ballot, trouble: type[Exception]) -> None:
    async def main() -> None:
        with pytest.raises(trouble):
            await Peer("n0", {}).ballots._answer_prepare("m0", Prepare(2, FIRST.hash, ballot))

    run_virtual(main())


def test_an_acceptor_speaks_for_few_histories_and_forgets_what_is_over() -> None:
    async def main() -> None:
        peer = Peer("n0", {})
        peer.history.took_part(2)  # it still applies the record of step 2, and may speak for step 3
        for number in range(MEMORIES):
            assert (await peer.prepare(Prepare(3, f"made up {number}", Ballot(1, "m0")))).granted
        with pytest.raises(Refused, match="too many histories"):
            await peer.prepare(Prepare(3, "one more", Ballot(1, "m0")))
        peer.ballots.forget()
        assert (await peer.prepare(Prepare(3, "one more", Ballot(1, "m0")))).granted

    run_virtual(main())


def test_whoever_is_past_a_step_gives_its_record_or_the_return_that_followed() -> None:
    async def main() -> None:
        peer = Peer("n0", {})
        peer.history.replace(SECOND, "digest")
        promise = await peer.prepare(Prepare(2, FIRST.hash, Ballot(7, "m0")))
        assert promise == Promise(False, NO_BALLOT, NO_BALLOT, SECOND.raw)
        lives = {"m0": 1, "m1": 1}
        back = build_return(FIRST, (("m0",), ("m1",)), lives, after=SECOND.hash, after_version=2, conductor="c")
        peer.history.replace(back, "digest")
        promise = await peer.prepare(Prepare(3, SECOND.hash, Ballot(7, "m0")))
        assert promise == Promise(False, NO_BALLOT, NO_BALLOT, back.raw)

    run_virtual(main())


@pytest.mark.parametrize(
    ("proposed", "trouble", "why"),
    [
        (record(step=3, parent=FIRST.hash), PeerFault, "another step"),
        (dataclasses.replace(SECOND, broke_at=5), Refused, "counts don't follow"),
    ],
)
def test_a_record_that_can_not_follow_is_not_accepted(proposed: Record, trouble: type[Exception], why: str) -> None:
    async def main() -> None:
        ask = Accept(2, FIRST.hash, Ballot(1, "m0"), proposed.raw)
        with pytest.raises(trouble, match=why):
            await Peer("n0", {}).ballots._answer_accept("m0", ask)

    run_virtual(main())


def test_a_step_that_is_over_is_not_decided_again() -> None:
    async def main() -> None:
        peer = Peer("n0", {})
        peer.history.replace(SECOND, "digest")
        with pytest.raises(Refused, match="step 2 is over"):
            await peer.ballots._answer_accept("m0", Accept(2, FIRST.hash, Ballot(1, "m0"), RIVAL.raw))

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- time


def test_time_counts_only_without_a_break_and_with_every_stage_there() -> None:
    alone = Alone()
    assert alone.seconds(0.0, complete=True) == 0.0
    assert alone.seconds(10.0, complete=True) == 10.0
    assert alone.seconds(20.0, complete=False) == 0.0
    assert alone.seconds(30.0, complete=True) == 10.0
    assert alone.seconds(30.0 + SLEPT_SECONDS + 1, complete=True) == 0.0, "this peer was stopped meanwhile"
