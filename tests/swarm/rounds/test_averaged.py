"""What a peer keeps of averaged gradients: parts by their bytes, candidates until the commit, bounded."""

from swarmd.sim.world.clock import run_virtual
from swarmd.swarm.rounds.averaged import CANDIDATES, AveragedGradients, part_digest
from swarmd.swarm.wire.messages.round import AveragedPart, Part
from swarmd.values import Encoded


def data(value: int) -> Encoded:
    return Encoded("fp32", (1,), (bytes([value]) * 4,))


def test_parts_are_named_by_their_bytes_and_found_by_that_name() -> None:
    async def main() -> None:
        held, one, other = AveragedGradients(2), data(1), data(2)
        held.keep(3, Part(0, 1, "a"), one)
        held.keep(3, Part(0, 1, "a"), one)
        held.keep(3, Part(0, 1, "b"), other)
        names = [part_digest(it) for it in (one, other)]
        assert set(await held.parts(3)) == {AveragedPart(0, 1, name) for name in names}
        assert await held.parts(2) == ()
        assert await held.find(3, Part(0, 1, "a", part_digest(other))) is other
        assert await held.find(3, Part(0, 2, "a", part_digest(other))) is None
        assert await held.find(3, Part(0, 1, "a", "nothing")) is None

    run_virtual(main())


def test_parts_end_with_their_step_and_late_ones_are_not_kept() -> None:
    async def main() -> None:
        held = AveragedGradients(2)
        held.keep(3, Part(0, 1, "a"), data(1))
        held.end_step(3, "")
        assert await held.parts(3) == ()
        held.keep(3, Part(0, 1, "a"), data(1))
        assert held._parts == {}
        held.keep(4, Part(0, 1, "a"), data(1))
        assert len(await held.parts(4)) == 1

    run_virtual(main())


def test_any_candidate_may_become_the_committed_gradient_and_the_others_are_let_go() -> None:
    held = AveragedGradients(2)
    for value in range(CANDIDATES + 2):
        held.add(3, f"digest {value}", (data(value),))
    assert [held.whole(3, f"digest {value}") is not None for value in range(CANDIDATES + 2)] == [
        False,
        False,
        *[True] * CANDIDATES,
    ]
    held.end_step(3, "digest 2")
    assert held.whole(3, "digest 2") == (data(2),)
    assert held.whole(3, "digest 3") is None
    held.add(4, "x", (data(0),))
    held.add(5, "y", (data(0),))
    assert held.whole(3, "digest 2") is None, "the newest steps only"


def test_parts_of_one_border_are_bounded() -> None:
    held = AveragedGradients(2)
    for value in range(2 * CANDIDATES):
        held.keep(3, Part(0, 1, "a"), data(value))
    assert len(held._parts[0, 1]) == CANDIDATES
