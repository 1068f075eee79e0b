"""The moves from stage to stage that a step's record grants. Pure: plain data in, plain data out.

Moves are granted together, in the record that everyone decides, so that two views of the swarm never both empty a
stage. A mover counts nowhere until it has the other stage's state: two replicas that change places would leave
both stages without.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from swarmd.swarm.history.record import Move, StageEntry
from swarmd.swarm.wire.messages.presence import Card
from swarmd.swarm.wire.messages.round import StageReport
from swarmd.values import PeerId

MINIMUM_REPLICAS = 1  # that a stage keeps when its peers move by choice: one is enough to go on from

Replicas = Mapping[int, Sequence[PeerId]]
"""The peers that have the state of each stage of the run."""


class Wishes:
    """The moves for which peers have asked the conductor of the present step, in the order in which they came."""

    def __init__(self) -> None:
        self._step = 0
        self._wishes: dict[PeerId, Move] = {}

    def begin(self, step: int) -> None:
        """Begins a step: wishes of another step are void, and are asked for again."""
        if step != self._step:
            self._step = step
            self._wishes.clear()

    def ask(self, wish: Move, replicas: Replicas) -> str:
        """Takes in a wish. Why it can't be granted beside those that came before; "" if it can."""
        if not (why := objection(wish, replicas, plan_moves(self.others(wish.peer), replicas))):
            self._wishes[wish.peer] = wish
        else:
            self._wishes.pop(wish.peer, None)
        return why

    def others(self, peer: PeerId) -> list[Move]:
        """The moves that all other peers wish for."""
        return [it for it in self._wishes.values() if it.peer != peer]

    def plan(self, replicas: Replicas) -> tuple[Move, ...]:
        """The moves that the step's record grants."""
        return plan_moves(self._wishes.values(), replicas)


def able_alone(staying: Iterable[Card], step: int, round_: StageReport | StageEntry) -> list[PeerId]:
    """Those of a stage's replicas that can go on alone after a step: they have the step's whole gradient, or have
    applied it. Of a step that is skipped nobody needs the gradient, and who took part knows of it. One that came
    during the step may look like them, and can't be told from its card.
    """
    having: Collection[PeerId] = round_.holders or round_.members
    return [card.peer for card in staying if card.peer in having or card.version >= step]


def plan_moves(wishes: Iterable[Move], replicas: Replicas, minimum: int = MINIMUM_REPLICAS) -> tuple[Move, ...]:
    """The wishes that are granted, first come, first served, as far as no stage comes below its minimum; by peer."""
    granted: list[Move] = []
    for wish in wishes:
        if not objection(wish, replicas, granted, minimum):
            granted.append(wish)
    return tuple(sorted(granted, key=lambda move: move.peer))


def objection(wish: Move, replicas: Replicas, granted: Iterable[Move] = (), minimum: int = MINIMUM_REPLICAS) -> str:
    """Why a move can't be granted beside others, in a sentence; "" if it can."""
    granted = list(granted)
    if wish.target not in replicas:
        return f"this run has no stage {wish.target}: its stages are 0 to {len(replicas) - 1}"
    if wish.source == wish.target:
        return f"it serves stage {wish.target} already"
    if wish.peer not in replicas.get(wish.source, ()):
        return f"it is not known as a replica of stage {wish.source}"
    if any(move.peer == wish.peer for move in granted):
        return "another move of it is granted already"
    movers = {move.peer for move in granted if move.source == wish.source} | {wish.peer}
    staying = [peer for peer in replicas[wish.source] if peer not in movers]
    if len(set(staying)) < minimum:
        left = f"{len(set(staying))} replica{'' if len(set(staying)) == 1 else 's'}"
        return f"stage {wish.source} would be left with {left}, and it needs {minimum}"
    return ""
