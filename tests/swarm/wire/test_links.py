"""Links: nobody ungreeted or of another run is answered; refusals are sentences; malformed words cost a connection."""

import asyncio
import dataclasses
from typing import Any, cast

import pytest

from swarmd.errors import Mismatch, NotAllowed, OutOfRange, PeerFault, PeerUnreachable, Refused, UnknownKind
from swarmd.sim.world.clock import run_virtual
from swarmd.sim.world.network import SimNetwork
from swarmd.swarm.wire import links as links_module
from swarmd.swarm.wire.framing import from_frame, to_frame
from swarmd.swarm.wire.messages.commit import AskRecord
from swarmd.swarm.wire.messages.common import PROTOCOL, Ack
from swarmd.swarm.wire.messages.hop import Beat, Busy, Room
from swarmd.swarm.wire.messages.presence import AskPlace, AskSettings, Hello, SayHello, Settings
from swarmd.swarm.wire.roles import Needs
from swarmd.values import Frame
from tests.swarm.wire.nodes import Node, meet, node


async def forever() -> Any:
    """Doesn't answer."""
    await asyncio.get_running_loop().create_future()


async def ask_raw(asker: Node, peer: str, frame: Frame) -> object:
    """Asks past the asker's own manners."""
    return from_frame(await asker.links.transport.request(peer, frame))


def test_a_question_is_preceded_by_a_greeting_and_both_get_the_others_card() -> None:
    async def test(a: Node, b: Node) -> None:
        answer = await a.links.ask("b", Room(3), deadline_s=1)
        assert answer == Ack()
        assert b.rooms == [("a", 3)]
        assert [it.peer for it in a.cards] == ["b"]
        assert [it.peer for it in b.cards] == ["a"]
        await b.links.ask("a", Room(4), deadline_s=1)
        assert len(a.cards) == len(b.cards) == 1, "one greeting is enough for both"

    meet(test)


def test_many_questions_at_once_share_one_greeting() -> None:
    async def test(a: Node, b: Node) -> None:
        await asyncio.gather(*(a.links.ask("b", Room(n), deadline_s=1) for n in range(20)))
        assert len(b.rooms) == 20
        assert len(b.cards) == 1

    meet(test)


def test_a_peer_of_another_run_is_refused_with_a_sentence() -> None:
    async def test(a: Node, b: Node) -> None:
        with pytest.raises(Refused, match="is of run run and this daemon of run another; their settings differ"):
            await a.links.ask("b", Room(3), deadline_s=1)
        assert (a.cards, b.cards, b.rooms) == ([], [], [])

    meet(test, other_run="another")


@pytest.mark.parametrize("rest", [{}, {"card": {"name": 7}}, {"more": 1}], ids=["alike", "in other words", "with more"])
def test_another_protocol_is_refused_with_a_sentence(rest: dict[str, Any]) -> None:
    """Whatever else its greeting says."""

    async def test(a: Node, b: Node) -> None:
        hello = Frame("Hello", {**to_frame(Hello(PROTOCOL + 1, "run", a.membership.own)).body, **rest})
        with pytest.raises(Refused, match=rf"speaks protocol {PROTOCOL + 1} and this daemon {PROTOCOL}; update"):
            await ask_raw(a, "b", hello)
        assert isinstance(await ask_raw(a, "b", to_frame(Room(3))), SayHello)

    meet(test)


def test_an_answer_of_another_protocol_is_refused_by_the_asker() -> None:
    async def test(a: Node, b: Node) -> None:
        async def old(peer: str, frame: Frame) -> Frame:
            return Frame("Hello", {"protocol": PROTOCOL - 1, "card": "in other words"})

        b.links.transport.serve(old)
        with pytest.raises(Mismatch, match="protocol"):
            await a.links.greet("b")
        assert a.cards == []

    meet(test)


def test_who_hasnt_greeted_is_told_to() -> None:
    async def test(a: Node, b: Node) -> None:
        for message in (Room(3), AskRecord(1), AskPlace(0, True)):
            assert await ask_raw(a, "b", to_frame(message)) == SayHello()
        assert b.rooms == []

    meet(test)


def test_an_asker_whose_peer_lost_sight_of_it_greets_again() -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")
        b.links._greeted.clear()
        assert await a.links.ask("b", Room(3), deadline_s=1) == Ack()
        assert b.rooms == [("a", 3)]

    meet(test)


def test_a_card_of_somebody_else_costs_the_connection() -> None:
    async def test(a: Node, b: Node) -> None:
        hello = Hello(PROTOCOL, "run", dataclasses.replace(a.membership.own, peer="c"))
        with pytest.raises(PeerUnreachable):
            await ask_raw(a, "b", to_frame(hello))
        assert a.links.transport.connected() == ()
        assert b.cards == []

    meet(test)


MALFORMED = [Frame("Room", {}), Frame("Room", {"hops": "many"}), Frame("Room", {"hops": 1}, (b"",))]


@pytest.mark.parametrize("frame", MALFORMED)
def test_a_malformed_question_costs_the_connection(frame: Frame) -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")
        lost: list[str] = []
        b.links.on_lost(lost.append)
        with pytest.raises(PeerUnreachable):
            await ask_raw(a, "b", frame)
        assert lost == ["a"]
        assert b.rooms == []

    meet(test)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [(Frame("Dance", {}), UnknownKind), (Frame("Room", {"hops": -1}), OutOfRange)],
    ids=["unknown", "out of range"],
)
def test_a_question_that_another_release_may_ask_is_refused_and_the_connection_stays(
    frame: Frame, kind: type[Refused]
) -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")
        lost: list[str] = []
        b.links.on_lost(lost.append)
        with pytest.raises(kind):
            await ask_raw(a, "b", frame)
        await a.links.ask("b", Room(3), deadline_s=1)
        assert (lost, b.rooms) == ([], [("a", 3)])

    meet(test)


@pytest.mark.parametrize(
    ("frame", "kind"),
    [(Frame("Dance", {}), UnknownKind), (Frame("Commit", {"record": None, "voters": [""] * 65}, (b"",)), OutOfRange)],
    ids=["unknown", "out of range"],
)
def test_an_answer_that_another_release_may_give_is_none_and_the_connection_stays(
    frame: Frame, kind: type[Refused]
) -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")

        async def other(peer: str, question: Frame) -> Frame:
            return frame

        b.links.transport.serve(other)
        with pytest.raises(kind):
            await a.links.ask("b", AskRecord(1), deadline_s=1)
        assert a.links.transport.connected() == ("b",)

    meet(test)


def test_what_we_may_not_send_is_a_bug_that_costs_no_connection() -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")
        with pytest.raises(ValueError, match="a Room that no peer would take"):
            await a.links.ask("b", Room(-1), deadline_s=1)
        assert a.links.transport.connected() == ("b",)

    meet(test)


@pytest.mark.parametrize("answer", [Frame("Commit", {}), to_frame(Busy(1))])
def test_a_wrong_answer_costs_the_connection(answer: Frame) -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")

        async def wrong(peer: str, frame: Frame) -> Frame:
            return answer

        b.links.transport.serve(wrong)
        with pytest.raises(PeerFault):
            await a.links.ask("b", Room(3), deadline_s=1)
        assert a.links.transport.connected() == ()

    meet(test)


def test_what_nobody_answers_is_refused() -> None:
    async def test(a: Node, b: Node) -> None:
        with pytest.raises(Refused, match="nobody here answers Beat now"):
            await a.links.ask("b", Beat((), 0, 0.0, 0.0), deadline_s=1)

    meet(test)


def test_what_a_scope_answered_is_refused_once_it_is_closed() -> None:
    async def test(a: Node, b: Node) -> None:
        async def answer(peer: str, beat: Beat) -> Ack:
            return Ack()

        beat = Beat((), 0, 0.0, 0.0)
        old, new = b.links.scope(), b.links.scope()
        old.handle(Beat, answer)
        assert await a.links.ask("b", beat, deadline_s=1) == Ack()
        old.close()
        with pytest.raises(Refused, match="nobody here answers Beat now"):
            await a.links.ask("b", beat, deadline_s=1)
        assert await a.links.ask("b", Room(3), deadline_s=1) == Ack(), "that is answered outside of it"
        new.handle(Beat, answer)
        assert await a.links.ask("b", beat, deadline_s=1) == Ack()

    meet(test)


def test_a_broken_connection_means_greeting_again() -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")
        lost: list[str] = []
        a.links.on_lost(lost.append)
        await a.links.transport.drop("b")
        assert lost == ["b"]
        await a.links.ask("b", Room(3), deadline_s=1)
        assert len(b.cards) == 2

    meet(test)


def test_a_word_from_a_peer_is_a_sign_of_life() -> None:
    async def test(a: Node, b: Node) -> None:
        b.membership.hear(a.membership.own, 0.0)
        await a.links.greet("b")
        b.membership.suspect("a")
        await a.links.ask("b", Room(3), deadline_s=1)
        assert b.membership.is_live("a")

    meet(test)


# ------------------------------------------------------------------------------------------------- settings


def test_a_peer_without_a_run_may_ask_for_the_settings_and_nothing_else() -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")
        assert await a.links.ask_settings("b") == Settings({"name": "toy"}, "run", PROTOCOL)
        assert await ask_raw(a, "b", to_frame(Room(3))) == SayHello()
        assert b.rooms == []

    meet(test, run=None)


def test_a_peer_that_has_no_run_yet_is_not_to_blame() -> None:
    """One that was killed and starts again is still called by those who knew it."""

    async def test(a: Node, b: Node) -> None:
        lost: list[str] = []
        b.links.on_lost(lost.append)
        with pytest.raises(PeerUnreachable, match="no run yet"):
            await a.links.ask("b", Room(3), deadline_s=1)
        assert (b.rooms, lost) == ([], []), "the connection stays: through it the peer may be learning the run now"

    meet(test, other_run=None)


def test_an_idle_peer_has_no_settings_to_give() -> None:
    async def test(a: Node, b: Node) -> None:
        with pytest.raises(Refused, match="idle and has no run"):
            await a.links.ask_settings("b")
        assert await ask_raw(b, "a", to_frame(AskSettings())) == Settings({"name": "toy"}, "run", PROTOCOL)

    meet(test, other_run=None)


# ------------------------------------------------------------------------------------------------- many, and oneself


def test_of_many_those_that_answer_are_heard() -> None:
    async def main() -> None:
        network = SimNetwork()
        nodes = {name: node(network, name, "another" if name == "c" else "run") for name in "abcd"}
        for name in "bcd":
            nodes["a"].links.transport.learn(name, ())

        async def never(peer: str, frame: Frame) -> Frame:
            return cast("Frame", await forever())

        nodes["d"].links.transport.serve(never)
        began = asyncio.get_running_loop().time()
        answers = await nodes["a"].links.tell_all(["a", "b", "c", "d", "gone"], Room(1), deadline_s=2)
        assert list(answers) == ["a", "b"], "in the order asked, oneself without the network"
        assert asyncio.get_running_loop().time() - began == pytest.approx(2)

    run_virtual(main())


def test_who_is_gone_is_unreachable_at_once() -> None:
    async def main() -> None:
        network = SimNetwork()
        one, other = node(network, "a"), node(network, "b")
        one.links.transport.learn("b", ())
        await one.links.greet("b")

        async def never(peer: str, room: Room) -> Ack:
            network.kill("b")
            return cast("Ack", await forever())

        other.links.handle(Room, never)
        with pytest.raises(PeerUnreachable):
            await one.links.ask("b", Room(1), deadline_s=None)
        with pytest.raises(PeerUnreachable):
            await one.links.ask("b", Room(1), deadline_s=None)
        assert asyncio.get_running_loop().time() < 1

    run_virtual(main())


def test_a_greeting_that_never_ends_is_given_up() -> None:
    async def test(a: Node, b: Node) -> None:
        async def never(peer: str, frame: Frame) -> Frame:
            return cast("Frame", await forever())

        b.links.transport.serve(never)
        with pytest.raises(TimeoutError):
            await a.links.ask("b", Room(1), deadline_s=None)
        assert asyncio.get_running_loop().time() == pytest.approx(links_module.GREETING_SECONDS)

    meet(test)


class Strict:
    """A judge to whom only peers that say that they serve have any role."""

    def __init__(self, it: Node) -> None:
        self._membership = it.membership

    async def allows(self, peer: str, message: Any, needs: Needs) -> bool:
        known = self._membership.get(peer)
        return known is not None and known.state == "serving"


def become(it: Node, state: str) -> None:
    """Changes a node's card, which its next greeting brings."""
    it.links.own.card = dataclasses.replace(it.links.own.next(), state=state)


def test_who_lacks_the_role_is_refused_before_any_handler_keeps_its_connection_and_is_counted() -> None:
    async def test(a: Node, b: Node) -> None:
        b.links.judge_by(Strict(b))
        become(a, "joining")
        for _ in range(2):
            with pytest.raises(NotAllowed, match="Room counts only from a replica of the stage"):
                await a.links.ask("b", Room(3), deadline_s=1)
        assert (b.rooms, b.links.role_refusals.counts) == ([], {"Room": 2})
        assert a.links.transport.connected() == ("b",)

    meet(test)


def test_who_has_the_role_by_now_greets_again_and_is_heard() -> None:
    """Its announcement may be on its way still."""

    async def test(a: Node, b: Node) -> None:
        b.links.judge_by(Strict(b))
        become(a, "joining")
        await a.links.greet("b")
        become(a, "serving")
        await asyncio.gather(*(a.links.ask("b", Room(number), deadline_s=1) for number in range(3)))
        assert sorted(b.rooms) == [("a", number) for number in range(3)]
        assert not b.links.role_refusals.counts

    meet(test)


def test_whose_card_is_not_held_greets_again() -> None:
    async def test(a: Node, b: Node) -> None:
        await a.links.greet("b")
        b.membership.hear(dataclasses.replace(a.links.own.next(), state="left"), 0.0)
        b.membership.sweep(0.0)
        assert b.membership.get("a") is None
        assert await a.links.ask("b", Room(3), deadline_s=1) == Ack()

    meet(test)


def test_who_has_greeted_and_does_not_count_yet_is_answered() -> None:
    async def test(a: Node, b: Node) -> None:
        b.links.on_card(lambda card: b.membership._members.clear())
        for number in range(3):
            assert await a.links.ask("b", Room(number), deadline_s=1) == Ack()
        assert len(b.cards) == 2, "it greets once more, and not each time"

    meet(test)


def test_nothing_but_greetings_counts_before_there_is_a_run_to_judge_by() -> None:
    async def test(a: Node, b: Node) -> None:
        b.links._judge = None
        with pytest.raises(Refused, match="takes part in no run yet"):
            await a.links.ask("b", Room(3), deadline_s=1)
        assert await a.links.ask_settings("b")

    meet(test)
