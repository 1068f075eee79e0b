"""A peer's view of the swarm's stages, measured and summed up, by which it decides about moves."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

from swarmd.config import RunConfig
from swarmd.sizes import needed_bytes
from swarmd.swarm.balance.rule import (
    Candidate,
    StageLoad,
    Terms,
    download_seconds,
    in_order,
    pays,
    stage_works,
    with_move,
)
from swarmd.swarm.history.record import Move
from swarmd.swarm.membership.states import AT_WORK, STAYING
from swarmd.swarm.membership.table import Membership, nan_to_zero
from swarmd.swarm.wire.messages.presence import Card, Summary
from swarmd.values import PeerId

SAME_SPEED = 1.5  # speeds that differ by less from the median count as equal: warming up and other load change them so
SERVICE_FLOOR_SECONDS = 1e-9  # for a microbatch: what says less is a lie, and no infinity comes of it
SPEED_SPREAD = 16.0  # no peer counts as faster or slower by more: what it says of itself may be wrong
MOVING_LIMIT = 256  # peers on their way to other stages, in a stage's summary: as many as its message has room for
Powers = Mapping[PeerId, float]


def measured_powers(cards: Sequence[Card], works: Sequence[float]) -> dict[PeerId, float]:
    """The power of each peer, by its own word; one that has measured too little is ordinary. 1 each if nobody has
    measured enough.
    """
    said = {
        it.peer: works[it.stage] / max(seconds, SERVICE_FLOOR_SECONDS)
        for it in cards
        if it.measured and 0 <= it.stage < len(works) and (seconds := nan_to_zero(it.service_seconds))
    }
    middle = statistics.median(said.values()) if said else 1.0

    def power(peer: PeerId) -> float:
        ratio = min(SPEED_SPREAD, max(1 / SPEED_SPREAD, said.get(peer, middle) / middle))
        return middle if 1 / SAME_SPEED <= ratio <= SAME_SPEED else middle * ratio

    return {it.peer: power(it.peer) for it in cards}


def stage_loads(
    cards: Sequence[Card], works: Sequence[float], summaries: Mapping[int, Summary] | None = None
) -> list[StageLoad]:
    """Every stage, from the cards of those known, and from the summaries of those stages that have more peers."""
    powers, summaries = measured_powers(cards, works), summaries or {}
    stages = range(len(works))
    power, staying, candidates = [0.0] * len(works), [0] * len(works), [list[Candidate]() for _ in stages]
    known = [[it for it in cards if it.stage == at and it.state in STAYING] for at in stages]
    summed = {at for at in stages if at in summaries and 0 < len(known[at]) < summaries[at].peers}
    for it in cards:
        away = it.moving in stages and it.state in AT_WORK
        if it.stage not in stages or it.stage in summed or not (away or it.state in (*STAYING, "joining")):
            continue
        if it.ending:  # the peer that is to take its place may come before it goes
            continue
        power[it.moving if away else it.stage] += powers[it.peer]
        if it.state in STAYING and not away:
            staying[it.stage] += 1
            if it.rested:
                candidates[it.stage].append(Candidate(powers[it.peer], it.peer, it.has_data, it.memory_bytes))
    for at in sorted(summed):
        _add_summary(summaries[at], power, staying, candidates)
    return [StageLoad(power[at], staying[at], in_order(candidates[at])) for at in stages]


def _add_summary(it: Summary, power: list[float], staying: list[int], candidates: list[list[Candidate]]) -> None:
    """A far stage: its peers are known by number only."""
    away = [(target, nan_to_zero(each)) for target, each in it.moving if 0 <= target < len(power)]
    own = nan_to_zero(it.power)
    power[it.stage] += own
    for target, each in away:
        power[target] += each
    staying[it.stage] += max(0, it.peers - len(away))
    mean = own / max(1, it.peers - len(away))
    candidates[it.stage] += [Candidate(mean)] * min(max(0, it.candidates), staying[it.stage])


def sum_up(stage: int, cards: Sequence[Card], works: Sequence[float], shown: tuple[Card, ...], peers: int) -> Summary:
    """A stage's summary for everyone, by one of its peers."""
    powers = measured_powers(cards, works)
    own = [it for it in cards if it.stage == stage and it.state in AT_WORK]
    load = stage_loads([it for it in cards if it.stage == stage], works)[stage]
    away = tuple((it.moving, powers[it.peer]) for it in own if it.moving >= 0)
    return Summary(stage, shown, peers, load.power, len(load.candidates), away[:MOVING_LIMIT])


class Outlook:
    """All stages as this peer sees them."""

    def __init__(self, run: RunConfig, membership: Membership) -> None:
        self.works = stage_works(run.model)
        needs = tuple(needed_bytes(run, stage) for stage in range(run.model.stages))
        self.terms = Terms(download_seconds(run.model), needs=needs)
        self._membership = membership

    def loads(self, besides: Iterable[Card] = ()) -> list[StageLoad]:
        """The load of each stage now. `besides`: cards that count, too, or instead of those that are known."""
        cards = {card.peer: card for card in self._expected()}
        cards.update((card.peer, card) for card in besides)
        return stage_loads([cards[peer] for peer in sorted(cards)], self.works, self._membership.summaries())

    def _expected(self) -> list[Card]:
        """The cards of those that count: that work, or may be about to."""
        standing, own = self._membership.standing, self._membership.own.peer
        return [card for card in self._membership.kin() if card.peer == own or standing.is_expected(card.peer)]

    def sum_up(self, stage: int, shown: tuple[Card, ...], peers: int) -> Summary:
        """A stage's summary. `shown`: of its so many peers, those whose cards it has."""
        return sum_up(stage, self._expected(), self.works, shown, peers)

    def objection(self, wish: Move, granted: Iterable[Move]) -> str:
        """The conductor's guard: why a move doesn't help any more, beside those that are granted; "" if it does.
        Everyone else who is on the way still counts where it is: of several that go to the same place, the first to ask
        get there.
        """
        cards = [_as_it_was(card) for card in self._expected()]
        powers = measured_powers(cards, self.works)
        loads = self.loads(cards)
        where = {card.peer: card.stage for card in cards}
        for move in granted:
            if where.get(move.peer) == move.source:  # else it has left already
                loads = with_move(loads, move, powers.get(move.peer, 0.0))
        if wish.target not in range(len(loads)) or wish.source not in range(len(loads)):
            return f"this run has no stage {wish.target}"
        if pays(wish, powers.get(wish.peer, 0.0), loads, self.works):
            return ""
        return f"stage {wish.target} doesn't need it more than stage {wish.source} any more"


def _as_it_was(card: Card) -> Card:
    """A card of someone who is on its way, as if it weren't."""
    leaves = card.moving >= 0 and card.state in AT_WORK
    return dataclasses.replace(card, moving=-1, state="serving") if leaves else card
