"""Who is told of a record in a large swarm, and who passes it on."""

from swarmd.swarm.history.distribution import RELAYS_TRIED, plan_relays
from tests.swarm.cards import card


def test_each_stage_has_its_relays_and_nobody_relays_to_itself() -> None:
    cards = [card(f"p{number:03}", stage=number % 5) for number in range(200)]
    relays = plan_relays(7, cards, "p000")
    assert [len(stage) for stage in relays] == [RELAYS_TRIED] * 5
    for stage, peers in enumerate(relays):
        assert all(int(peer[1:]) % 5 == stage for peer in peers)
        assert "p000" not in peers
    assert relays != plan_relays(8, cards, "p000"), "the work goes round"


def test_only_those_at_work_relay() -> None:
    cards = [card("a"), card("b", state="joining"), card("c", stage=1, state="finished")]
    assert plan_relays(1, cards, "me") == [["a"]]
