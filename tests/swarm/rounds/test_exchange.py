"""One attempt at averaging: what an owner makes of the contributions, what a member takes, and who is blamed."""

import asyncio
import dataclasses
import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import DeviceLost, NonFinite, PeerFault, Refused
from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.rounds.averaged import AveragedGradients, part_digest
from swarmd.swarm.rounds.exchange import (
    NOTHING,
    PARTS_AT_ONCE,
    PARTS_AT_ONCE_LIMIT,
    Exchange,
    Spoiled,
    plan_pace,
    plan_turns,
    unless_over,
)
from swarmd.swarm.rounds.parts import plan_parts
from swarmd.swarm.wire.messages.hop import Blame
from swarmd.swarm.wire.messages.round import Averaged, Contribution, OpenPart, Part, Plan, Standing
from swarmd.values import Encoded
from tests.swarm.fake_links import FakeLinks

STEP, STAGE = 3, 1
PARTS = (Part(0, 4, "a"), Part(4, 8, "b"))
PLAN = Plan(STEP, "a/1", ("b", "a"), PARTS, 64, "fp16", (0, 0), stage=STAGE)


def data(words: str) -> Encoded:
    return Encoded("fp16", (1,), (words.encode(),))


class Member:
    """A peer in the exchange; its device writes down what it adds."""

    def __init__(
        self, name: str, everyone: dict[str, FakeLinks], plan: Plan = PLAN, *, whole: bool = True, seconds: float = 0.0
    ) -> None:
        self.name, self.links = name, FakeLinks(name, everyone)
        self.averaged, self.whole = AveragedGradients(2), whole
        self.contributed: list[int] = []
        self.cannot_contribute: BaseException | None = None
        self.cannot_reduce: BaseException | None = None
        self.seconds = seconds  # to reduce a part
        self.checks = 0
        compute: Any = SimpleNamespace(contribution=self._contribution, reduce=self._reduce)
        self.exchange = Exchange(plan, name, cast("Any", self.links), compute, self.averaged, whole=whole)
        self.links.handle(Contribution, self.exchange.contribute)

    async def _contribution(self, step: int, start: int, stop: int, *, codec: str) -> Encoded:
        assert (step, stop - start, codec) == (STEP, 4, "fp16")
        self.contributed.append(start)
        if self.cannot_contribute is not None:
            raise self.cannot_contribute
        return data(f"{self.name}{start}")

    async def _reduce(self, ordered: list[Encoded], tokens: int, *, codec: str) -> Encoded:
        assert codec == "fp16"
        await asyncio.sleep(self.seconds)
        if self.cannot_reduce is not None:
            raise self.cannot_reduce
        return data("+".join(bytes(it.data[0]).decode() for it in ordered) + f"/{tokens}")

    def check(self) -> None:
        self.checks += 1

    async def take_part(self) -> list[str]:
        return [bytes(it.data[0]).decode() for it in await self.exchange.take_part(self.check)]

    async def give(self, member: str, words: str = "", part: int = 0) -> Averaged:
        """A contribution to one of its parts."""
        return await self.exchange.contribute(member, Contribution(STEP, PLAN.attempt, part, data(words)))

    async def kept(self, parts: Iterable[Part] = PARTS) -> list[bool]:
        """The parts whose averages are kept for another attempt."""
        names = {(it.start, it.stop) for it in await self.averaged.parts(STEP)}
        return [(part.start, part.stop) in names for part in parts]


def members(names: str = "ab", plan: Plan = PLAN, **changes: Any) -> list[Member]:
    everyone: dict[str, FakeLinks] = {}
    return [Member(name, everyone, plan, **changes) for name in names]


def of(*parts: Part, **changes: Any) -> Plan:
    return dataclasses.replace(PLAN, parts=parts or PARTS, **changes)


# ------------------------------------------------------------------------------------------------- what all get


@pytest.mark.parametrize("whole", [True, False])
def test_everyone_gets_the_same_bytes_of_each_part_added_in_the_plans_order(whole: bool) -> None:
    """One that is no member of the plan gives nothing, and gets them as well."""

    async def main() -> None:
        a, b, x = members("abx", whole=whole)
        got = await asyncio.gather(*(it.take_part() for it in (a, b, x)))
        assert got == [["b0+a0/64", "b4+a4/64"]] * 3
        assert [sorted(it.contributed) for it in (a, b, x)] == [[0, 4], [0, 4], []]
        assert [it.checks for it in (a, b, x)] == [2, 2, 0], "before each contribution"
        for it in (a, b, x):
            assert await it.kept() == [whole] * 2, "only what has every index once"
            assert it.exchange.standing() == Standing("a/1", ((0, 2),))

    run_virtual(main())


def test_an_owner_keeps_what_it_averaged_although_it_is_no_member() -> None:
    async def main() -> None:
        (a,) = members("a", of(members=("b",)))
        await a.give("b", "b0")
        assert await a.kept() == [True, False]

    run_virtual(main())


def test_a_part_without_any_contributor_is_the_owners_zeros() -> None:
    async def main() -> None:
        (a,) = members("a", of(members=()))
        assert await a.give("b", "no member's") == Averaged(data("a0/64"))

    run_virtual(main())


def test_who_contributes_and_when_is_up_to_the_plan_alone() -> None:
    """Strangers count for nothing; the last word of a member counts, until its part is being reduced."""

    async def main() -> None:
        (a,) = members("a", seconds=5.0)
        waiting = [asyncio.ensure_future(a.give("x", "x0"))]
        for member, words in (("b", "first"), ("b", "b0"), ("a", "a0")):
            await asyncio.sleep(1)
            waiting.append(asyncio.ensure_future(a.give(member, words)))
        await asyncio.sleep(1)
        waiting += [asyncio.ensure_future(a.give("b", "late")), asyncio.ensure_future(a.give("a", "late"))]
        assert {it.data for it in await asyncio.gather(*waiting)} == {data("b0+a0/64")}
        assert (await a.give("b", "again")).data == data("b0+a0/64")
        assert set(a.exchange.buckets[0].contributions.values()) == {NOTHING}, "their bytes are let go"

    run_virtual(main())


def test_the_last_to_contribute_may_go_meanwhile() -> None:
    async def main() -> None:
        (a,) = members("a", seconds=5.0)
        first = asyncio.ensure_future(a.give("b", "b0"))
        await asyncio.sleep(1)
        last = asyncio.ensure_future(a.give("a", "a0"))
        await asyncio.sleep(1)
        last.cancel()
        assert (await first).data == data("b0+a0/64")
        second = asyncio.ensure_future(a.give("b", "b0"))
        second.cancel()
        await asyncio.sleep(0)
        assert (await a.give("a", "a0")).data == data("b0+a0/64")

    run_virtual(main())


@pytest.mark.parametrize(("part", "faulty"), [(-1, True), (0, False), (1, True), (2, True)])
def test_a_part_that_is_not_its_own_is_a_fault(part: int, faulty: bool) -> None:
    async def main() -> None:
        (a,) = members("a", of(PARTS[0], PARTS[1], members=("b",)))
        if faulty:
            with pytest.raises(PeerFault, match="another owner"):
                await a.give("b", part=part)
        else:
            await a.give("b", part=part)

    async def one_more() -> None:
        """The last part is its own: none is counted from the end, and none is beyond it."""
        (b,) = members("b", of(members=("a",)))
        for beyond in (-1, 2):
            with pytest.raises(PeerFault, match="another owner"):
                await b.give("a", part=beyond)

    run_virtual(main())
    run_virtual(one_more())


def test_only_one_part_per_owner_is_under_way() -> None:
    async def main() -> None:
        parts = [Part(4 * number, 4 * number + 4, "ab"[number % 2]) for number in range(4 * PARTS_AT_ONCE)]
        a, b = members("ab", of(*parts), seconds=1.0)
        under_way = most = 0

        async def count(peer: str, it: Contribution) -> Averaged:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await b.exchange.contribute(peer, it)
            finally:
                under_way -= 1

        b.links.handle(Contribution, count)
        got = await asyncio.gather(*(it.take_part() for it in (a, b)))
        assert got == [[f"b{part.start}+a{part.start}/64" for part in parts]] * 2
        assert most == PARTS_AT_ONCE, "a half of each member's parts"

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- averaged before


def test_what_an_owner_has_from_an_attempt_before_is_given_without_a_contribution() -> None:
    async def main() -> None:
        before = data("before")
        a, b = members("ab", of(dataclasses.replace(PARTS[0], digest=part_digest(before)), PARTS[1]))
        a.averaged.keep(STEP, PARTS[0], before)
        got = await asyncio.gather(*(it.take_part() for it in (a, b)))
        assert got == [["before", "b4+a4/64"]] * 2
        assert [peer for peer, it in a.links.asked if it.part == 0] == [], "it has that itself"
        assert (a.contributed, b.contributed, a.checks, b.checks) == ([4], [4], 1, 1)
        assert await b.kept() == [True, True]

    run_virtual(main())


@pytest.mark.parametrize("given", ["", "other bytes"])
def test_what_its_owner_does_not_have_any_more_or_has_otherwise_is_refused(given: str) -> None:
    async def main() -> None:
        a, b = members("ab", of(dataclasses.replace(PARTS[0], digest=part_digest(data("before")))))
        if given:

            async def lie(peer: str, it: Contribution) -> Averaged:
                return Averaged(data(given))

            a.links.handle(Contribution, lie)
        said = "not what its owner said it had" if given else "that part isn't here any more"
        with pytest.raises(Refused, match=f"an owner failed: .*{said}"):
            await b.take_part()
        assert await b.kept() == [False, False]
        assert b.exchange.standing().has == ()

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- how it stands


def test_its_standing_says_which_of_its_parts_are_open_and_whose_contributions_are_in() -> None:
    async def main() -> None:
        before = Part(8, 12, "a", digest="of before")
        (a,) = members("a", of(*PARTS, before, Part(12, 16, "a")))
        assert a.exchange.standing() == Standing("a/1", (), (OpenPart(0, ()), OpenPart(3, ())))
        waiting = asyncio.ensure_future(a.give("a", "a0"))
        await asyncio.sleep(1)
        assert a.exchange.standing() == Standing("a/1", (), (OpenPart(0, ((1, 2),)), OpenPart(3, ())))
        await a.give("b", "b0")
        await waiting
        assert a.exchange.standing() == Standing("a/1", (), (OpenPart(3, ()),))

    run_virtual(main())


def test_an_attempt_is_known_by_its_step_and_its_name() -> None:
    async def main() -> None:
        (a,) = members("a")
        assert a.exchange.is_of(STEP, "a/1")
        assert not a.exchange.is_of(STEP, "a/2")
        assert not a.exchange.is_of(STEP + 1, "a/1")

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- bad numbers


@pytest.mark.parametrize(
    ("source", "peer"), [(0, "b"), (1, "a"), (2, "a"), (None, "a")], ids=["b's", "a's", "nobody's", "only the sum"]
)
def test_a_part_that_is_not_finite_spoils_the_round_for_all_and_its_source_is_named(
    source: int | None, peer: str
) -> None:
    async def main() -> None:
        a, b = members("ab")
        a.cannot_reduce = NonFinite("infinite", "average", source)
        blamed = await asyncio.gather(a.take_part(), b.take_part(), return_exceptions=True)
        assert [cast("Any", it).blame for it in blamed] == [Blame("average", STAGE, peer)] * 2
        assert (await a.kept())[0] is (await b.kept())[0] is False

    run_virtual(main())


def test_a_source_that_is_not_in_the_plan_is_the_owner_itself() -> None:
    async def main() -> None:
        (a,) = members("a", of(members=("b",)))
        a.cannot_reduce = NonFinite("infinite", "average", 1)
        assert await a.give("b") == Averaged(NOTHING, Blame("average", STAGE, "a"))

    run_virtual(main())


@pytest.mark.parametrize("own", [True, False])
def test_who_has_no_finite_sum_blames_itself(own: bool) -> None:
    async def main() -> None:
        (a,) = members("a", of(PARTS[0], members=("a",) if own else ()))
        a.cannot_contribute = NonFinite("infinite", "sum", 7)
        if own:
            with pytest.raises(Spoiled) as spoiled:
                await a.take_part()
            assert spoiled.value.blame == Blame("sum", STAGE, "a")
        else:
            assert await a.give("b") == Averaged(NOTHING, Blame("sum", STAGE, "a"))

    run_virtual(main())


def test_bad_numbers_count_for_more_than_an_owner_that_fails() -> None:
    async def main() -> None:
        for parts in ((Part(0, 4, "gone"), Part(4, 8, "a")), (Part(0, 4, "a"), Part(4, 8, "gone"))):
            a, b = members("ab", of(*parts))

            async def spoil(peer: str, it: Contribution) -> Averaged:
                return Averaged(NOTHING, Blame("sum", STAGE, "c"))

            a.links.handle(Contribution, spoil)
            with pytest.raises(Spoiled):
                await b.take_part()

    run_virtual(main())


# ------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    ("trouble", "said", "unforeseen"),
    [
        (PeerFault("malformed"), "a part can't be reduced: malformed", 0),
        (Refused("the step is over"), "a part can't be reduced: the step is over", 0),
        (MemoryError("none left"), "a part can't be reduced: none left", 0),
        (ValueError("a bug"), "a part can't be reduced: ValueError", 1),
        (DeviceLost("it fell off"), "a part can't be reduced: DeviceLost", 0),
    ],
    ids=lambda it: type(it).__name__,
)
def test_nobody_waits_for_a_part_that_can_not_be_reduced(trouble: Exception, said: str, unforeseen: int) -> None:
    async def main() -> None:
        a, b = members("ab")
        a.cannot_reduce = trouble
        found = await asyncio.gather(a.take_part(), b.take_part(), return_exceptions=True)
        assert [type(it) for it in found] == [Refused] * 2
        assert all(str(it) == f"an owner failed: {said}" for it in found)
        assert a.links.fence.count == unforeseen, "the loss of the device is said elsewhere"
        assert not (await a.kept())[0]

    run_virtual(main())


@pytest.mark.parametrize("trouble", [KeyError(STEP), MemoryError("none left")], ids=["the step is over", "memory"])
def test_a_member_that_can_not_contribute_gives_up_the_attempt(trouble: Exception) -> None:
    async def main() -> None:
        (a,) = members("a", of(PARTS[0], members=("a",)))
        a.cannot_contribute = trouble
        said = f"step {STEP} is over" if isinstance(trouble, KeyError) else "none left"
        with pytest.raises(Refused, match=f"an owner failed: {said}"):
            await a.take_part()

    run_virtual(main())


def test_a_member_whose_sum_is_another_than_the_plans_gives_nothing() -> None:
    async def main() -> None:
        (a,) = members("a", of(PARTS[0], members=("a",)))

        def check() -> None:
            raise Refused("the sum has changed")

        with pytest.raises(Refused, match="an owner failed: the sum has changed"):
            await a.exchange.take_part(check)
        assert (a.contributed, a.links.asked) == ([], [])

    run_virtual(main())


@pytest.mark.parametrize("over", [True, False])
def test_when_an_attempt_ends_nobody_waits_any_more(over: bool) -> None:
    """The exchange keeps what is being reduced for the next attempt, unless the step is over."""

    async def main() -> None:
        (a,) = members("a", of(PARTS[0], Part(4, 8, "a"), members=("b",)), seconds=5.0)
        waiting = [asyncio.ensure_future(a.give("b", "b0")), asyncio.ensure_future(a.give("x", part=1))]
        await asyncio.sleep(1)
        a.exchange.end("another attempt", over=over)
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(it) for it in found] == ["another attempt"] * 2
        assert asyncio.get_running_loop().time() < 2.0
        await asyncio.sleep(10)
        assert await a.kept() == [not over, False]

    async def after() -> None:
        """What was averaged before stays, and a part that nobody asked for has nobody to be told."""
        (a,) = members("a", of(PARTS[0], members=("b",)))
        await a.give("b", "b0")
        a.exchange.end("another attempt", over=over)
        assert (await a.give("b", "b0")).data == data("b0/64")

    run_virtual(main())
    run_virtual(after())


def test_a_device_that_no_longer_has_the_step_says_so() -> None:
    with pytest.raises(Refused, match="step 3 is over"), unless_over(3):
        raise KeyError(3)
    with pytest.raises(ValueError, match="else"), unless_over(3):
        raise ValueError("else")


# ------------------------------------------------------------------------------------------------- the order


def test_every_owner_gets_its_turn_before_any_gets_a_second() -> None:
    parts = plan_parts(1000, {"a": 1.0, "b": 1.0, "c": 2.0}, limit=100)
    turns = plan_turns(parts)
    assert sorted(turns) == list(range(len(parts)))
    assert [parts[number].owner for number in turns[:3]] == ["a", "b", "c"]
    rounds = [parts[number].owner for number in turns]
    for owner in "abc":  # nobody is more than one turn ahead of another who has parts left
        assert rounds[:6].count(owner) == 2


def test_turns_are_those_of_a_dumb_twin() -> None:
    rng = random.Random(0)
    for _ in range(200):
        parts = [Part(number, number + 1, rng.choice("abcde")) for number in range(rng.randrange(1, 30))]
        queues = {owner: [n for n, part in enumerate(parts) if part.owner == owner] for owner in "abcde"}
        expected: list[int] = []
        while any(queues.values()):
            expected += sorted(queue.pop(0) for queue in queues.values() if queue)
        assert list(plan_turns(parts)) == expected


def test_one_part_per_owner_is_under_way_within_bounds() -> None:
    assert plan_pace([Part(0, 1, "a")]) == PARTS_AT_ONCE
    assert plan_pace([Part(n, n + 1, f"{n}") for n in range(11)]) == 11
    assert plan_pace([Part(n, n + 1, f"{n}") for n in range(1000)]) == PARTS_AT_ONCE_LIMIT
