"""Bounds: what is within them, and what is said of that which isn't."""

import math
from typing import Any

import pytest

from swarmd.swarm.wire.bounds import Ascending, AtMost, Between, Bound, Bytes, Text, Together, Tree
from swarmd.values import Encoded

TREE = Tree(depth=2, values=4, characters=6)
WITHIN: list[tuple[Bound, Any]] = [
    (Between(-1, 3), -1),
    (Between(-1, 3), 3),
    (Between(0.0, 1.5), 1),
    (Text(3), ""),
    (Text(3), "a \u00e4"),
    (AtMost(2), (1, 2)),
    (AtMost(0), ()),
    (Together(4), ("ab", "cd")),
    (Ascending(9), ()),
    (Ascending(9), ((0, 1), (1, 4), (5, 9))),
    (Bytes(3), b"abc"),
    (Bytes(8), memoryview(bytes(8)).cast("d")),
    (Bytes(4), Encoded("fp32", (1,), (b"ab", b"cd"))),
    (TREE, {}),
    (TREE, {"a": [1, "bcd"], "e": 2.5}),
    (Tree(depth=4, values=99, characters=99), {"a": [{"b": [1]}]}),
]
BEYOND: list[tuple[Bound, Any, str]] = [
    (Between(-1, 3), -2, "is -2, and not from -1 to 3"),
    (Between(-1, 3), 4, "is 4, and not from -1 to 3"),
    (Between(0.0, 1.5), math.nan, "is nan, and not from 0.0 to 1.5"),
    (Between(0.0, 1.5), math.inf, "is inf, and not from 0.0 to 1.5"),
    (Text(3), "abcd", "has 4 characters, and not up to 3"),
    (Text(3), "a\n", "has characters that can't be shown"),
    (Text(3), "a\u202e", "has characters that can't be shown"),
    (Text(3), "\ud800", "has characters that can't be shown"),
    (AtMost(2), (1, 2, 3), "has 3 items, and not up to 2"),
    (Together(4), ("ab", "cde"), "has 5 characters in all, and not up to 4"),
    (Ascending(9), ((-1, 1),), "has -1..1 out of order, or not within 0..9"),
    (Ascending(9), ((5, 10),), "has 5..10 out of order, or not within 0..9"),
    (Ascending(9), ((2, 4), (3, 5)), "has 3..5 out of order, or not within 0..9"),
    (Ascending(9), ((2, 2),), "has 2..2 out of order, or not within 0..9"),
    (Bytes(3), b"abcd", "has 4 bytes, and not up to 3"),
    (Bytes(7), memoryview(bytes(8)).cast("d"), "has 8 bytes, and not up to 7"),
    (Bytes(3), Encoded("fp32", (1,), (b"ab", b"cd")), "has 4 bytes, and not up to 3"),
    (TREE, {"a": [1, 2, 3, 4]}, "has over 4 values, or over 6 characters"),
    (TREE, {"a": "bcdefg"}, "has over 4 values, or over 6 characters"),
    (TREE, {"abcdefg": 1}, "has over 4 values, or over 6 characters"),
    (TREE, {"a": [[]]}, "is nested more than 2 times"),
    (TREE, {"a": {"b": {"c": 1}}}, "is nested more than 2 times"),
]


@pytest.mark.parametrize(("bound", "value"), WITHIN)
def test_what_is_within_a_bound_is_not_objected_to(bound: Bound, value: Any) -> None:
    assert bound.objection(value) == ""


@pytest.mark.parametrize(("bound", "value", "objection"), BEYOND)
def test_what_is_beyond_a_bound_is_objected_to_in_words(bound: Bound, value: Any, objection: str) -> None:
    assert bound.objection(value) == objection
