"""Kept graphs: room, forgetting and steps that end, without a stage."""

import pytest
import torch

from swarmd.config import Recompute
from swarmd.errors import HopForgotten
from swarmd.stage.graphs import Forward, Graphs, Keeping
from swarmd.stage.inputs import Source
from swarmd.stage.numerics import FP32
from swarmd.values import HopId

HOP, OTHER = HopId(1, 0), HopId(1, 1)


def graph(nbytes: int = 8) -> Forward:
    return Forward(Source(b"", None), torch.Size([2]), FP32, nbytes=nbytes)


def test_a_second_forward_of_a_hop_takes_the_room_of_the_first() -> None:
    graphs = Graphs(10)
    graphs.keep(HOP, 0, graph(0))
    assert graphs.room == 10
    graphs.keep(HOP, 0, graph(7))
    assert graphs.room == 3
    graphs.keep(HOP, 0, graph(4))
    graphs.keep(OTHER, 0, graph(5))
    assert graphs.room == 1
    assert graphs.take(HOP, 0).nbytes == 4
    assert graphs.room == 5
    assert graphs.hops() == {OTHER}


@pytest.mark.parametrize(
    ("recompute", "by_room", "whole"),
    [
        ("never", ["graphs", "graphs", "graphs"], True),
        ("auto", ["graphs", "inputs", "source"], False),
        ("block", ["inputs", "inputs", "source"], False),
        ("always", ["source", "source", "source"], True),
    ],
)
def test_forwards_are_kept_as_the_node_says_and_room_allows(
    recompute: Recompute, by_room: list[str], whole: bool
) -> None:
    keeping = Keeping(recompute, graphs=100, inputs=10)
    sizes = {"graphs": 100, "inputs": 10, "source": 0}
    assert [keeping.plan(room) for room in (100, 99, 9)] == [(kind, sizes[kind]) for kind in by_room]
    assert keeping.whole(99) == whole, "the graphs of one forward don't fit"
    assert keeping.whole(100) == (recompute != "block")


def test_work_that_began_before_its_hop_was_forgotten_is_void() -> None:
    graphs = Graphs(1)
    attempt = graphs.begin(HOP, None)
    graphs.keep(HOP, attempt, graph())
    graphs.forget(HOP)
    for work in (
        lambda: graphs.begin(HOP, attempt),
        lambda: graphs.keep(HOP, attempt, graph()),
        lambda: graphs.take(HOP, attempt),
        lambda: graphs.shape(HOP),
        lambda: graphs.unforgotten(HOP, attempt).__enter__(),
    ):
        with pytest.raises(HopForgotten):
            work()
    again = graphs.begin(HOP, None)
    assert again == graphs.attempt(HOP) == 1
    graphs.keep(HOP, again, graph())
    assert graphs.shape(HOP) == torch.Size([2])
    with graphs.unforgotten(HOP, again):
        pass


def test_a_hop_that_never_came_is_a_bug_of_ours() -> None:
    graphs = Graphs(1)
    with pytest.raises(KeyError, match="no forward"):
        graphs.shape(HOP)
    with pytest.raises(KeyError, match="later step"):
        graphs.begin(HopId(2, 0), None)


def test_a_step_s_end_drops_what_is_left_of_it() -> None:
    graphs = Graphs(20)
    graphs.keep(HOP, 0, graph())
    graphs.keep(OTHER, 0, graph())
    graphs.forget(OTHER)
    graphs.end(1)
    assert (graphs.hops(), graphs.room, graphs.attempt(OTHER)) == (set(), 20, 0)
    graphs.forget(HOP)
    assert graphs.attempt(HOP) == 0, "of a step that is over nothing is noted"
    with pytest.raises(HopForgotten, match="has ended"):
        graphs.begin(HOP, None)
