"""Votes on a record: what a peer says of one, whom it asks, and how often."""

import asyncio
import dataclasses
from typing import Any

import pytest

from swarmd.errors import Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.confirmation import (
    AGAIN_SECONDS,
    DOUBTS_KEPT,
    VOTE_SECONDS,
)
from swarmd.swarm.wire.messages.commit import AskVote
from swarmd.swarm.wire.messages.common import Ballot
from tests.swarm.history.confirming import (
    ACCEPTORS,
    BALLOT,
    FIRST,
    RETURN,
    SECOND,
    Peer,
    Swarm,
    now,
)

# ------------------------------------------------------------------------------------------------- its own word

ASK = AskVote(2, FIRST.hash, SECOND.hash, BALLOT)


def vote(it: Peer, **changes: Any) -> tuple[bool, bool] | None:
    """What a peer says of a record: that it accepted it, that it is decided; None: it can't speak for the step."""
    try:
        said = it.confirmation._vote(dataclasses.replace(ASK, **changes))
    except Refused:
        return None
    return said.accepted, said.decided


def test_who_accepted_a_record_or_knows_it_says_so_although_it_can_speak_for_no_step_any_more() -> None:
    async def main() -> None:
        it = Peer("m0", {}, member=False)
        assert vote(it) is None
        it.accept()
        assert vote(it) == (True, False)
        assert vote(it, ballot=Ballot(2, "m0")) is None
        it.history.votes.learn(SECOND.hash)
        assert vote(it) == (True, True)
        assert vote(it, ballot=Ballot(2, "m0")) == (False, True)

    run_virtual(main())


def test_an_acceptor_that_took_part_speaks_for_the_next_step_of_its_own_history() -> None:
    async def main() -> None:
        it = Peer("m0", {})
        assert vote(it) == (False, False)
        assert vote(it, parent_hash="elsewhere") is None
        with it.history.crossing(1):
            assert vote(it) is None, "it is about to be of another"
        assert vote(it) == (False, False)
        stranger = Peer("p0", {}, member=True)
        assert vote(stranger) is None, "no acceptor"

    run_virtual(main())


def test_who_still_applies_the_record_before_speaks_for_the_step_if_it_took_part_in_that() -> None:
    async def main() -> None:
        it = Peer("m0", {})
        later: dict[str, Any] = {"step": 3, "parent_hash": SECOND.hash}
        assert vote(it, **later) is None
        it.history.took_part(2)
        assert vote(it, **later) == (False, False)

    run_virtual(main())


def test_who_has_a_record_of_the_step_speaks_for_it_whether_it_took_part_or_not() -> None:
    async def main() -> None:
        it = Peer("m0", {}, member=False)
        it.history.chain.append(SECOND)
        assert vote(it, record_hash="another") == (False, False)

    run_virtual(main())


def test_a_founder_speaks_for_any_way_on_from_what_was_founded_again() -> None:
    async def main() -> None:
        it = Peer("m0", {}, member=False)
        it.history.origin.found("m0", resumes=False)
        assert vote(it, parent_hash="elsewhere") == (False, False)

    run_virtual(main())


def test_an_acceptor_that_can_not_speak_itself_asks_the_others() -> None:
    async def main() -> None:
        it = Swarm("m1").accept("m0", "n0", "o0", "n1")
        it.me.history._contributed.clear()
        assert await it.me.confirms()

    run_virtual(main())


def test_the_word_of_one_that_is_no_acceptor_is_no_vote() -> None:
    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS[:3])
        it.me.accept()
        assert not await it.me.confirms()

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- whom it asks


def test_where_it_knows_enough_already_nobody_is_asked() -> None:
    async def main() -> None:
        it = Swarm("m1")
        three = dataclasses.replace(
            FIRST,
            stages=tuple(
                dataclasses.replace(entry, members=members)
                for entry, members in zip(FIRST.stages, (("m0",), ("m1", "n1")), strict=True)
            ),
        )
        it.me.history.replace(three, "digest")
        it.me.history.took_part(1)
        after = dataclasses.replace(SECOND, parent=three.hash)
        it.me.accept(after)
        assert await it.me.confirms(after, "m0", ("n1",))
        assert it.me.asked == []

    run_virtual(main())


@pytest.mark.parametrize(("voters", "asked"), [(("n0", "o0"), ["n0", "o0"]), ((), ["n0", "n1", "o0", "o1"])])
def test_it_waits_for_as_many_answers_as_it_takes(voters: tuple[str, ...], asked: list[str]) -> None:
    async def main() -> None:
        it = Swarm("m1").accept("m0", "m1", "n0", "o0")
        for number, name in enumerate(("n1", "o1", "n0", "o0")):

            async def answer(peer: str, ask: AskVote, name: str = name, number: int = number) -> Any:
                await asyncio.sleep(0.1 * number)
                return await it.peers[name].confirmation._answer_vote(peer, ask)

            it.peers[name].links.handle(AskVote, answer)
        assert await it.me.confirms(source="m0", voters=voters)
        assert (sorted(it.me.asked), round(now(), 3)) == (asked, 0.3)

    run_virtual(main())


def test_who_knows_no_founder_takes_the_word_of_one_of_those_around() -> None:
    async def main() -> None:
        it = Swarm(version=0)
        it.me.history.origin.resumes = True
        back = dataclasses.replace(RETURN, after="founding")
        assert not await it.me.confirms(back, "y")
        assert await it.me.confirms(back, "m0")

    run_virtual(main())


def test_an_acceptor_that_is_not_known_any_more_is_not_asked_and_nobody_twice() -> None:
    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS)
        it.peers["n0"].links.deaf = True
        it.me.membership.hear(dataclasses.replace(it.peers["m0"].card, state="left", sequence=9), now())
        it.me.membership.sweep(now())
        assert await it.me.confirms(voters=ACCEPTORS[:4])
        assert sorted(it.me.asked) == sorted(set(ACCEPTORS) - {"m0"})

    run_virtual(main())


def test_an_acceptor_that_can_not_even_be_greeted_holds_nobody_up() -> None:
    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS[:4])
        ask = it.me.links.ask

        async def hang(peer: str, request: Any, **how: Any) -> Any:
            return await (asyncio.sleep(1000) if peer in ("n1", "o1") else ask(peer, request, **how))

        it.me.links.ask = hang  # type: ignore[method-assign]
        it.kill("m0")
        assert not await it.me.confirms()
        assert now() == 2 * VOTE_SECONDS, "as an acceptor, and as a witness"

    run_virtual(main())


def test_a_record_without_a_parent_has_no_acceptors_that_it_could_name_itself() -> None:
    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS[:3])
        it.me.history.origin.founder = "x"
        forged = dataclasses.replace(SECOND, step=9, parent="")
        assert not await it.me.confirms(forged, "x")
        assert not await it.me.confirmation.denies(forged)
        it.me.history.origin.founder = ""
        assert not await it.me.confirmation.denies(forged)

    run_virtual(main())


@pytest.mark.parametrize(
    ("version", "resumes", "returns", "founders"),
    [(0, True, True, True), (1, True, True, False), (0, False, True, False), (0, True, False, False)],
)
def test_the_founders_word_alone_counts_where_nothing_but_disks_is_left(
    version: int, resumes: bool, returns: bool, founders: bool
) -> None:
    async def main() -> None:
        it = Swarm(version=version)
        it.me.history.origin.founder, it.me.history.origin.resumes = "m0", resumes
        it.peers["m0"].history.origin.found("m0", resumes=True)
        made = dataclasses.replace(RETURN, after="founding") if returns else dataclasses.replace(SECOND, parent="x")
        for name in ACCEPTORS[1:]:
            it.peers[name].history.votes.learn(made.hash)
        assert await it.me.confirms(made, "y") != founders, "most others' word counts for a run that is under way"

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- at a time


def test_two_that_wait_for_the_same_record_both_believe_it() -> None:
    async def main() -> None:
        it = Swarm().accept(*ACCEPTORS[:4])
        assert all(await asyncio.gather(it.me.confirms(), it.me.confirms()))
        assert len(it.me.asked) == len(set(it.me.asked))
        assert it.me.confirmation._asking == {}

    run_virtual(main())


def test_doubts_are_remembered_until_they_are_settled_and_so_many_at_most() -> None:
    async def main() -> None:
        it = Swarm()
        made = [dataclasses.replace(SECOND, total_tokens=number) for number in range(DOUBTS_KEPT + 2)]
        for one in made:
            assert not await it.me.confirms(one)
        assert list(it.me.confirmation._doubts) == [one.hash for one in made[2:]]
        it.accept(*ACCEPTORS, it=made[-1])
        await asyncio.sleep(AGAIN_SECONDS)
        assert await it.me.confirms(made[-1])
        assert list(it.me.confirmation._doubts) == [one.hash for one in made[2:-1]]

    run_virtual(main())
