"""`python -m tests.hostile` plays attacks on small swarms of real daemons and prints a table of what each does."""

import argparse
import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.hostile import refused, virtual
from tests.hostile.attack import Attack
from tests.hostile.catalogue import ATTACKS
from tests.hostile.trial import Fare, Spans, play

HEAD = "| attack | what it does | before | during | after | other harm | states at the end |"


def row(fare: Fare) -> str:
    """A line of the table; steps a second."""
    off = f" (without {fare.without})" if fare.without else ""
    pace = " | ".join(f"{it:.2f}" for it in (fare.before, fare.during, fare.after))
    harm = "; ".join(fare.harms) or "none"
    return f"| {fare.attack.name}{off} | {fare.attack.does} | {pace} | {harm} | {', '.join(fare.states)} |"


def plain(fare: Fare) -> dict[str, Any]:
    """The same for programs."""
    rates = {"before": fare.before, "during": fare.during, "after": fare.after}
    said = {"harms": fare.harms, "states": fare.states, "answers": fare.heard}
    return {"attack": fare.attack.name, "without": fare.without, "harm": fare.harm, **rates, **said}


Player = Callable[[Attack, Spans, str], Fare]


def in_reality(attack: Attack, spans: Spans, without: str) -> Fare:
    return asyncio.run(play(attack, spans, without))


def played(names: Sequence[str], spans: Spans, player: Player, *, off: bool) -> Iterator[Fare]:
    for name in names:
        attack = ATTACKS[name]
        for without in ("", attack.defence) if off and attack.defence else ("",):
            yield player(attack, spans, without)


def show(fares: Iterator[Fare], spans: Spans, *, answers: bool) -> None:
    print(f"steps a second: before, during {spans.during:.0f} s, and {spans.later:.0f} s after\n")
    print(f"{HEAD}\n|{'---|' * 7}", flush=True)
    for fare in fares:
        print(row(fare), flush=True)
        if answers:
            print(*(f"    {it}" for it in fare.heard), sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=sorted(ATTACKS), help="this attack; again")
    parser.add_argument("--virtual", action="store_true", help="a simulated swarm, and its own seconds")
    parser.add_argument("--off", action="store_true", help="also with the defence off, where there is one")
    parser.add_argument("--answers", action="store_true", help="show what the attacker was answered")
    parser.add_argument("--json", action="store_true", help="one array of objects at the end, instead of the table")
    parser.add_argument("--during", type=float, default=Spans.during, help="seconds of an attack")
    parser.add_argument("--later", type=float, default=Spans.later, help="seconds until the swarm is looked at again")
    parser.add_argument("--connections", type=int, metavar="COUNT", help="instead: the price of refused connections")
    given = parser.parse_args()
    if given.connections:
        asyncio.run(refused.show(given.connections))
        return
    spans = Spans(during=given.during, later=given.later)
    names = given.only or [it.name for it in ATTACKS.values() if not (given.virtual and it.physical)]
    fares = played(names, spans, virtual.play if given.virtual else in_reality, off=given.off)
    if given.json:
        print(json.dumps([plain(fare) for fare in fares], indent=1))
    else:
        show(fares, spans, answers=given.answers)


if __name__ == "__main__":
    main()
