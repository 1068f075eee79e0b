"""How a peer comes by the gradient that a record names, and what it holds against a record."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import NonFinite, PeerUnreachable, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.history.record import Record
from swarmd.swarm.membership.table import SILENCE_FLOOR_SECONDS, Membership
from swarmd.swarm.rounds.averaged import AveragedGradients
from swarmd.swarm.rounds.committed import CommittedGradients
from swarmd.swarm.wire.messages.commit import AskGradient, GradientPart
from swarmd.swarm.wire.own_card import OwnCard
from swarmd.values import Encoded, GradientSummary
from tests.swarm.cards import card
from tests.swarm.contexts import stage_context

STEP = 3

Have = dict[str, tuple[Encoded, ...] | None]


def part(content: str) -> Encoded:
    return Encoded("fp32", (1,), (content.encode(),))


GOOD, BAD = (part("go"), part("od")), (part("ba"), part("d"))


class Device:
    """The digest of a gradient is its text."""

    def __init__(self) -> None:
        self.assembled: list[str] = []

    async def assemble(self, step: int, parts: Sequence[Encoded]) -> GradientSummary:
        if step != STEP:
            raise KeyError(step)
        text = b"".join(bytes(piece) for it in parts for piece in it.data).decode()
        if text == "full":
            raise MemoryError
        if text == "nan":
            raise NonFinite("an averaged part has an infinity or NaN", "average", 0)
        self.assembled.append(text)
        return GradientSummary(text, 4.0)


class Others:
    """Peers that have a gradient, by name; one that has None can't be reached, and one of the `silent` says nothing."""

    def __init__(self, have: Have) -> None:
        self.have, self.asked, self.silent = have, list[str](), set[str]()
        self.parts: dict[str, list[int]] = {}  # what each says instead of the number that it has

    async def ask(self, peer: str, question: AskGradient, *, deadline_s: float, **options: Any) -> GradientPart:
        self.asked.append(peer)
        if peer in self.silent:
            await asyncio.sleep(deadline_s)
            raise TimeoutError
        parts = self.have[peer]
        if parts is None:
            raise PeerUnreachable("gone")
        said = self.parts.get(peer)
        return GradientPart(said.pop(0) if said else len(parts), parts[question.part])


def record(digest: str = "good", holders: tuple[str, ...] = (), norm: float = 4.0, *, skipped: bool = False) -> Record:
    entry = SimpleNamespace(digest=digest, holders=holders, squared_norm=norm)
    return cast("Record", SimpleNamespace(step=STEP, stages=[entry], skipped=skipped))


class Peer:
    """A replica of stage 0 and those it can ask."""

    def __init__(self, have: Have | None = None, live: Sequence[str] = ()) -> None:
        self.members = members = Membership(OwnCard(card("me")))
        for name in live:
            members.hear(card(name), 0.0)
        self.others, self.device, self.averaged = Others(have or {}), Device(), AveragedGradients(2)
        scope = SimpleNamespace(handle=lambda kind, handler: None)
        context = stage_context(links=self.others, membership=members, compute=self.device, scope=scope, stage=0)
        self.committed = CommittedGradients(context, self.averaged)


async def test_what_was_averaged_here_is_not_assembled_again() -> None:
    peer = Peer()
    digest, norm = await peer.committed.assemble(STEP, GOOD)
    peer.averaged.add(STEP, digest, GOOD)
    assert (digest, norm, peer.committed.has(STEP), peer.committed.has(STEP + 1)) == ("good", 4.0, True, False)
    assert await peer.committed.gather(record())
    assert (peer.device.assembled, peer.others.asked) == (["good"], [])
    assert peer.committed.is_decided(STEP) and not peer.committed.is_decided(STEP + 1)


async def test_another_attempt_of_this_peer_may_be_the_one_that_counts() -> None:
    peer = Peer()
    peer.averaged.add(STEP, "good", GOOD)
    await peer.committed.assemble(STEP, BAD)
    assert await peer.committed.gather(record())
    assert peer.device.assembled == ["bad", "good"]


@pytest.mark.parametrize(("brought", "holds"), [(GOOD, True), (BAD, False)])
async def test_what_was_brought_beforehand_is_checked(brought: tuple[Encoded, ...], holds: bool) -> None:
    peer = Peer()
    peer.committed.hold(STEP, "good", brought)
    assert await peer.committed.gather(record()) == holds
    assert (peer.averaged.whole(STEP, "good") == GOOD) == holds


async def test_what_was_brought_for_another_record_is_not_assembled() -> None:
    peer = Peer()
    peer.committed.hold(STEP, "bad", BAD)
    assert not await peer.committed.gather(record())
    assert peer.device.assembled == []


async def test_holders_are_asked_before_others_and_the_living_before_the_dead() -> None:
    have: Have = {"dead": None, "liar": BAD, "living": None, "sibling": GOOD}
    peer = Peer(have, live=("living", "liar", "sibling"))
    assert await peer.committed.gather(record(holders=("dead", "me", "living")))
    assert list(dict.fromkeys(peer.others.asked)) == ["living", "liar", "sibling"]
    assert peer.averaged.whole(STEP, "good") == GOOD


def test_a_holder_that_has_fallen_silent_keeps_nobody_from_the_next_version() -> None:
    """No other record is applied meanwhile: who waits here for two minutes misses the end of a run."""

    async def main() -> float:
        peer = Peer({"mute": GOOD, "living": GOOD}, live=("mute", "living"))
        peer.others.silent.add("mute")
        began = asyncio.get_running_loop().time()
        assert await peer.committed.gather(record(holders=("mute", "living")))
        assert list(dict.fromkeys(peer.others.asked)) == ["mute", "living"]
        return asyncio.get_running_loop().time() - began

    assert run_virtual(main()) < SILENCE_FLOOR_SECONDS


def test_a_slow_holder_is_waited_for_as_long_as_it_is_heard() -> None:
    async def main() -> bool:
        peer, loop = Peer({"slow": GOOD}, live=("slow",)), asyncio.get_running_loop()
        usual = peer.others.ask

        async def ask(*arguments: Any, **options: Any) -> GradientPart:
            for _ in range(60):
                await asyncio.sleep(1.0)
                peer.members.touch("slow", loop.time())
            return await usual(*arguments, **options)

        peer.others.ask = ask  # type: ignore[method-assign]
        return await peer.committed.gather(record())

    assert run_virtual(main())


def test_those_who_are_silent_are_asked_last() -> None:
    async def main() -> list[str]:
        peer = Peer({"mute": GOOD, "living": GOOD}, live=("mute", "living"))
        await asyncio.sleep(SILENCE_FLOOR_SECONDS)
        peer.members.touch("living", asyncio.get_running_loop().time())
        assert await peer.committed.gather(record(holders=("mute", "living")))
        return list(dict.fromkeys(peer.others.asked))

    assert run_virtual(main()) == ["living"]


async def test_who_gave_something_else_is_not_asked_again_and_a_sentence_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = Peer({"liar": BAD, "torn": (part("nan"),), "many": GOOD}, live=("liar", "torn", "many"))
    peer.others.parts["many"] = [2, 3]
    with caplog.at_level("WARNING"):
        assert not await peer.committed.gather(record())
    assert "of step 3 no peer gives the gradient that its record names; something else came from liar, torn" in (
        it.getMessage() for it in caplog.records
    )
    asked = list(peer.others.asked)
    peer.others.parts.clear()
    peer.others.have["liar"] = GOOD
    assert await peer.committed.gather(record())
    assert peer.others.asked[len(asked) :] == ["many", "many"], "that one's answers didn't go together, once"
    assert not await peer.committed.gather(record("else"))
    assert "liar" in peer.others.asked[len(asked) + 2 :], "about another gradient it may be right"


async def test_what_the_round_brings_while_others_are_asked_in_vain_counts() -> None:
    """The record came before the round's last part; who would give the gradient dies meanwhile."""
    peer = Peer({"a": None}, live=["a"])
    ask = peer.others.ask

    async def meanwhile(*question: Any, **options: Any) -> GradientPart:
        peer.averaged.add(STEP, "good", GOOD)
        return await ask(*question, **options)

    peer.others.ask = meanwhile  # type: ignore[method-assign]
    assert await peer.committed.gather(record(holders=("a",)))
    assert peer.device.assembled == ["good"]
    assert peer.others.asked == ["a"]


async def test_nobody_has_it() -> None:
    peer = Peer({"dead": None})
    assert not await peer.committed.gather(record(holders=("dead",)))
    assert peer.others.asked == ["dead"]


@pytest.mark.parametrize(
    ("named", "objects"),
    [
        (record(norm=4.0), False),
        (record(norm=4.1), True),
        (record(norm=4.1, skipped=True), False),
        (record("other", norm=4.1), False),
    ],
)
async def test_a_record_with_another_norm_than_was_measured_here_is_objected_to(named: Record, objects: bool) -> None:
    peer = Peer()
    await peer.committed.assemble(STEP, GOOD)
    await peer.committed.gather(record())
    assert bool(peer.committed.objection(named)) == objects
    assert peer.committed.is_decided(STEP) != objects  # another record may still come


async def test_what_the_device_refuses_is_a_sentence() -> None:
    peer = Peer()
    with pytest.raises(Refused, match="no memory"):
        await peer.committed.assemble(STEP, (part("full"),))
    with pytest.raises(Refused, match="is over"):
        await peer.committed.assemble(STEP + 1, GOOD)
    assert not peer.committed.has(STEP)


async def test_only_what_the_record_names_is_given_to_others_afterwards() -> None:
    peer = Peer()
    peer.averaged.add(STEP, "good", GOOD)
    peer.averaged.add(STEP, "bad", BAD)
    peer.committed.hold(STEP, "good", GOOD)
    peer.committed.end_step(STEP, record())
    answer = await peer.committed._answer_gradient("late", AskGradient(STEP, "good", 1))
    assert answer == GradientPart(2, GOOD[1])
    for missing in (AskGradient(STEP, "bad", 0), AskGradient(STEP, "good", 2), AskGradient(STEP + 1, "good", 0)):
        with pytest.raises(Refused, match="not here any more"):
            await peer.committed._answer_gradient("late", missing)
    assert peer.committed._offered == {}


async def test_a_state_that_was_replaced_takes_its_gradients_along() -> None:
    peer = Peer()
    peer.averaged.add(STEP, "good", GOOD)
    peer.committed.hold(STEP, "good", GOOD)
    await peer.committed.gather(record())
    peer.committed.abandon(STEP - 1)
    assert not peer.committed.is_decided(STEP)
    assert not await peer.committed.gather(record())
