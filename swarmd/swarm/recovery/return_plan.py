"""The choice of the version that a swarm returns to, and of who takes which stage. Pure."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from swarmd.swarm.membership.order import rendezvous
from swarmd.swarm.wire.messages.disks import CheckpointList, CheckpointName
from swarmd.values import PeerId, short
from swarmd.whole import PassedOver, name_stages


@dataclass(frozen=True)
class ReturnPlan:
    """A version to return to, and the peers that hold its stages from there on."""

    version: int
    state: str  # `Record.state` of that version
    members: tuple[tuple[PeerId, ...], ...]  # by stage: who holds it from there on
    passed: tuple[PassedOver, ...] = field(default=(), compare=False)  # newer versions, the newest first


@dataclass(frozen=True)
class NoReturn:
    """The reason why there is no version to return to."""

    wanted: str  # what must come, in a few words
    whole: bool  # a version is whole: what it lacks is a peer for one of its stages


def plan_return(
    lists: Mapping[PeerId, CheckpointList],
    places: Mapping[PeerId, int],
    stages: int,
    upto: int,
    known: Callable[[int], str] = lambda version: "",
    *,
    spares: bool = True,
) -> ReturnPlan | NoReturn:
    """The newest version, at most `upto`, of which every stage is on the disk of one of those asked. `places`: the
    stage of each that can take part. `known`: what a version's state is called in our history, "" if that isn't
    remembered. `spares`: a stage that has no peer gets one from the others.
    """
    found = _newest_whole(lists, stages, upto, known)
    if isinstance(found, NoReturn):
        return found
    version, state, passed = found
    members = {stage: sorted(peer for peer, at in places.items() if at == stage) for stage in range(stages)}
    for stage in range(stages):
        if not members[stage] and not (
            spares and _send_spare(stage, members, lists, CheckpointName(version, stage, state))
        ):
            return NoReturn(f"a peer for stage {stage}", whole=True)
    return ReturnPlan(version, state, tuple(tuple(members[stage]) for stage in range(stages)), passed)


def _newest_whole(
    lists: Mapping[PeerId, CheckpointList], stages: int, upto: int, known: Callable[[int], str]
) -> tuple[int, str, tuple[PassedOver, ...]] | NoReturn:
    """The newest version and state that is whole, and what is passed over for it. Of two states of a version, the one
    with more checkpoints.
    """
    times = Counter(checkpoint for listed in lists.values() for checkpoint in _names(listed))
    versions = {(checkpoint.version, checkpoint.state_hash) for checkpoint in times if checkpoint.version <= upto}
    ours = sorted(it for it in versions if known(it[0]) in ("", it[1]))
    best: tuple[int, int, str] | None = None
    partial: dict[int, PassedOver] = {}  # of each version the state that lacks least
    for version, state in ours:
        lacking = [stage for stage in range(stages) if not times[CheckpointName(version, stage, state)]]
        if not lacking:
            count = sum(times[CheckpointName(version, stage, state)] for stage in range(stages))
            best = max(best, (version, count, state)) if best is not None else (version, count, state)
        elif version not in partial or len(lacking) <= len(partial[version].lacking):
            partial[version] = PassedOver(version, tuple(lacking), stages, _damaged(lists, version, lacking))
    if best is None:
        return NoReturn(_lacking(stages, partial), whole=False)
    passed = tuple(partial[version] for version in sorted(partial, reverse=True) if version > best[0])
    return best[0], best[2], passed


def _send_spare(
    stage: int, members: dict[int, list[PeerId]], lists: Mapping[PeerId, CheckpointList], checkpoint: CheckpointName
) -> bool:
    """Sends a peer to a stage that has none, from one that has most: rather one that has its checkpoint."""
    able = [peer for peer, listed in lists.items() if stage > 0 or listed.has_data]
    spare = [
        (checkpoint not in _names(lists[peer]), -len(peers), place, peer)
        for peers in members.values()
        if len(peers) > 1
        for place, peer in enumerate(rendezvous(f"spare/{checkpoint.state_hash}/{stage}", peers))
        if peer in able
    ]
    if not spare:
        return False
    peer = min(spare)[3]
    for peers in members.values():
        if peer in peers:
            peers.remove(peer)
    members[stage].append(peer)
    return True


def _names(listed: CheckpointList) -> list[CheckpointName]:
    """The checkpoints on a disk, whatever their bytes: those that differ are told apart when they are brought."""
    return [dataclasses.replace(checkpoint, root="") for checkpoint in listed.checkpoints]


def _lacking(stages: int, partial: Mapping[int, PassedOver]) -> str:
    """Says what must come so that a version is whole: the one that lacks least, the newest of these."""
    best = min(partial.values(), key=lambda it: (len(it.lacking), -it.version), default=None)
    missing = tuple(range(stages)) if best is None else best.lacking
    wanted = f"a checkpoint of {name_stages(missing)}, on a disk of anyone who comes"
    if best is None:
        return wanted
    broken = f"; damaged: {', '.join(best.damaged)}" if best.damaged else ""
    return f"{wanted} (of version {best.version} {stages - len(missing)} of {stages} stages are here{broken})"


def _damaged(lists: Mapping[PeerId, CheckpointList], version: int, lacking: Sequence[int]) -> tuple[str, ...]:
    """Names the damaged checkpoints of a version, of those stages that nobody has whole."""
    return tuple(
        f"that of stage {stage} at {short(peer)}"
        for peer in sorted(lists)
        for stage in lacking
        if (version, stage) in lists[peer].damaged
    )
