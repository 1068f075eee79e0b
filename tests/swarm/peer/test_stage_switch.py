"""A peer's stage: what can be opened, who gives its state, and the way back if it can't be."""

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.errors import ConfigError, Refused
from swarmd.sizes import needed_bytes
from swarmd.swarm.history.origin import Origin
from swarmd.swarm.history.record import Record
from swarmd.swarm.peer import stage_switch as module
from swarmd.swarm.peer.stage_switch import Switch
from swarmd.swarm.wire.messages.commit import AskRecord, Commit
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.own_card import OwnCard
from tests.swarm.cards import card
from tests.swarm.contexts import peer_context
from tests.swarm.records import RUN, record


class Rig:
    """Peer `p`, on whose machine the stages in `cannot` can't be opened."""

    def __init__(self, *cards: Any, cannot: tuple[int, ...] = (), data: str = "d") -> None:
        self.own_card, self.cards, self.cannot = OwnCard(card("p", stage=0)), list(cards), set(cannot)
        self.own_card.on_announce(self._announce)
        self.data, self.log = data, list[Any]()
        self.places = SimpleNamespace(has_data=True)
        rig = self

        class Members:
            own = property(lambda _: rig.own)
            newest = None

            def kin(self) -> list[Any]:
                return [rig.own, *rig.cards]

            def stage(self, stage: int) -> list[Any]:
                return [it for it in self.kin() if it.stage == stage]

            def get(self, peer: str) -> Card | None:
                return next((it for it in self.kin() if it.peer == peer), None)

        self.given: Record | None = None  # by those who are asked for a record
        self.history: Any = SimpleNamespace(
            detach=lambda: self.log.append("detached"), origin=Origin(), record=None, version=0
        )
        context = peer_context(
            run=RUN,
            links=SimpleNamespace(ask=self._ask),
            membership=Members(),
            history=self.history,
            tasks=SimpleNamespace(start=asyncio.ensure_future),
            own=self.own_card,
        )
        self.switch = Switch(context, cast("Any", None), self._open, cast("Any", self.places))

    async def _ask(self, peer: str, ask: AskRecord, *, deadline_s: float) -> Commit:
        if self.given is None or ask.step != self.given.step:
            raise Refused("no such record")
        return Commit(self.given.raw)

    @property
    def own(self) -> Card:
        return self.own_card.card

    def _set_card(self, **changes: Any) -> None:
        self.own_card.card = dataclasses.replace(self.own, **changes)

    async def _announce(self, told: Card) -> None:
        self.log.append("announced")

    async def _open(self, stage: int) -> tuple[Any, Any]:
        self.log.append(f"opens {stage}")
        if stage in self.cannot:
            raise ConfigError(f"no {stage}")
        return SimpleNamespace(codecs=("fp32",)), SimpleNamespace(digest=self.data) if stage == 0 else None


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stage:
        """A stage with nothing in it."""

        def __init__(self, *given: Any, **_: Any) -> None:
            self.stage = next(it for it in given if isinstance(it, int))
            self.left = False
            self.tasks = SimpleNamespace(ended=self._ended)

        def leave(self) -> None:
            self.left = True

        async def _ended(self) -> None:
            assert self.left

    class Joiner:
        def __init__(self, *_: Any) -> None: ...

        async def ended(self) -> None: ...

    monkeypatch.setattr(module, "ServedStage", Stage)
    monkeypatch.setattr(module, "Joiner", Joiner)


# ------------------------------------------------------------------------------------------------- what can be opened


async def test_what_speaks_against_a_stage_on_this_machine() -> None:
    it = Rig()
    assert it.switch.obstacle(1) == ""
    it._set_card(memory_bytes=needed_bytes(RUN, 1) - 1.0)
    assert "stage 1 takes" in it.switch.obstacle(1)
    it.places.has_data = False
    assert "needs the run's data" in it.switch.obstacle(0)


@pytest.mark.parametrize("known", ["guide", "founder", "its record", "the guide's record"])
async def test_whose_copy_of_the_data_is_another_serves_no_first_stage(known: str) -> None:
    """Those count whose word is more than a stranger's."""
    name = "m0" if "record" in known else "q"
    it = Rig(card(name, stage=0, data_digest="other"), card("g", stage=1, version=3))
    it.history.origin.guide = "q" if known == "guide" else "g"
    it.history.origin.founder = "q" if known == "founder" else "g"
    if known == "founder":
        it.cards.pop()
    it.history.record = record() if known == "its record" else None
    it.given = record() if known == "the guide's record" else None
    with pytest.raises(ConfigError, match="is not the run's"):
        await it.switch.open(0)
    assert it.switch.served is None
    assert not it.places.has_data, "it offers itself no more"


@pytest.mark.parametrize(
    ("strangers", "heads"),
    [
        ({"x": "other", "y": "other"}, {}),
        ({"x": "other", "y": "other"}, {"m0": "d"}),
        ({}, {"m0": "other", "n0": "d"}),  # undecided
        ({}, {"m0": "d", "n0": "d"}),
    ],
)
async def test_strangers_words_on_the_data_end_nothing(
    strangers: dict[str, str], heads: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    said = {**strangers, **heads}
    it = Rig(*(card(peer, stage=0, data_digest=digest) for peer, digest in said.items()))
    it.history.record = record()
    assert (await it.switch.open(0)).stage == 0
    assert ("another copy of the data" in caplog.text) == ("other" in said.values())


@pytest.mark.parametrize(("stage", "has_data"), [(0, False), (1, True)])
async def test_where_the_first_stage_cannot_be_opened_the_data_is_what_is_missing(stage: int, has_data: bool) -> None:
    it = Rig(cannot=(stage,))
    with pytest.raises(ConfigError):
        await it.switch.open(stage)
    assert it.places.has_data == has_data


# ------------------------------------------------------------------------------------------------- changing


async def test_a_departure_is_complete_in_one_turn() -> None:
    it = Rig()
    old = await it.switch.open(0)
    it.switch.leave_for(1, "q")
    assert it.switch.served is None
    assert old.left  # type: ignore[attr-defined]
    assert (it.own.stage, it.own.state, it.own.rested, it.own.heir) == (1, "joining", False, "q")
    assert it.log == ["opens 0", "detached"], "others are told afterwards"
    assert (await it.switch.arrive(1)).stage == 1


async def test_a_stage_that_is_open_is_entered_as_it_is() -> None:
    it = Rig()
    assert await it.switch.open(1) is await it.switch.enter(1)
    assert it.log == ["opens 1"]


async def test_where_a_stage_cannot_be_entered_the_one_before_is_opened_again() -> None:
    it = Rig(cannot=(1,))
    old = await it.switch.open(0)
    again = await it.switch.enter(1)
    assert again.stage == 0
    assert again is not old
    assert it.own.stage == 0


async def test_where_that_cannot_be_opened_either_it_fails() -> None:
    it = Rig()
    await it.switch.open(0)
    it.cannot = {0, 1}
    with pytest.raises(ConfigError, match="no 0"):
        await it.switch.enter(1)


# ------------------------------------------------------------------------------------------------- who gives the state


async def test_donors_are_replicas_the_newest_first() -> None:
    it = Rig(
        card("a", stage=1, version=3),
        card("b", stage=1, version=5, state="draining"),
        card("c", stage=1, version=5, state="finished"),
        card("d", stage=1, version=9, state="joining"),
        card("e", stage=0, version=9),
    )
    assert it.switch.donors(1) == ["b", "c", "a"]
    assert it.switch.donors(0) == ["e"], "it gives itself nothing"
