"""Kept graphs: room, forgetting and steps that end, without a stage."""

import pytest
import torch

from swarmd.errors import HopForgotten
from swarmd.stage.graphs import ForwardGraph, Graphs
from swarmd.values import HopId

HOP, OTHER = HopId(1, 0), HopId(1, 1)


def graph(*, kept: bool = True) -> ForwardGraph:
    tensor = torch.zeros(2)
    return ForwardGraph(tensor, tensor if kept else None, (), tensor.shape)


def test_only_outputs_take_room_and_a_second_graph_of_a_hop_takes_the_first_ones() -> None:
    graphs = Graphs(1)
    graphs.keep(HOP, 0, graph(kept=False))
    assert graphs.has_room()
    graphs.keep(HOP, 0, graph())
    assert not graphs.has_room()
    graphs.keep(HOP, 0, graph())
    assert graphs.take(HOP, 0).output is not None
    assert graphs.has_room()
    assert graphs.hops() == set()


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
    graphs = Graphs(2)
    graphs.keep(HOP, 0, graph())
    graphs.keep(OTHER, 0, graph())
    graphs.forget(OTHER)
    graphs.end(1)
    assert (graphs.hops(), graphs.has_room(), graphs.attempt(OTHER)) == (set(), True, 0)
    graphs.forget(HOP)
    assert graphs.attempt(HOP) == 0, "of a step that is over nothing is noted"
    with pytest.raises(HopForgotten, match="has ended"):
        graphs.begin(HOP, None)
