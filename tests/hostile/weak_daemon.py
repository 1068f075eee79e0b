"""swarmd, made weak: with a slow device, so that it costs little CPU, with little memory, or without some defences.

`python -m tests.hostile.weak_daemon [--slow S] [--memory BYTES] [--quiet] [--without DEFENCE,...] start ...`

An attack that a defence stops must work where that defence is off: else it is stopped by something else, or was none.
Production has no such switch; each entry of `DEFENCES` says what it takes away, by patching it in this process alone.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from swarmd.__main__ import main

_undo: list[Callable[[], None]] = []  # what is to be done for the defences to be back


def replace(owner: Any, name: str, by: Any) -> None:
    """Has something do what another does. A name that isn't there any more is a defence that is elsewhere now."""
    assert hasattr(owner, name), f"{owner} has no {name}"
    _undo.append(functools.partial(setattr, owner, name, getattr(owner, name)))
    setattr(owner, name, by)


def slow_down(seconds: float) -> None:
    """From now on each microbatch's forward takes so much longer."""
    from swarmd.stage import worker

    run = worker.Worker._run

    def slowly(it: worker.Worker, task: worker.Task) -> None:
        if task.kind == worker.FORWARD:
            time.sleep(seconds)
        run(it, task)

    replace(worker.Worker, "_run", slowly)


def accept_pace() -> None:
    """Takes every connection up."""
    from swarmd.net.accept_pace import AcceptPace

    replace(AcceptPace, "admit", lambda it, host, now: True)
    replace(AcceptPace, "admit_peer", lambda it, peer, host, now, known: True)


def gossip_pace() -> None:
    """Checks and passes on whatever anybody gossips."""
    from swarmd.net.gossip_pace import GossipPace

    replace(GossipPace, "has_room", lambda *_: True)


def dial_pace() -> None:
    """Dials whatever a card names, as often as there is a reason to."""
    from swarmd.net.dial_pace import DialPace

    replace(DialPace, "admit", lambda it, peer, addresses, worked, now: (list(addresses), ""))


def unanswered() -> None:
    """Waits for ever for a holder that beats and never answers."""
    from swarmd.swarm.hops import custody

    replace(custody, "unanswered", lambda *_, **__: "")


def norm() -> None:
    """Takes the squared norm of a gradient from the record."""
    from swarmd.swarm.rounds.committed import CommittedGradients

    replace(CommittedGradients, "objection", lambda it, record: "")


def second_opinion() -> None:
    """Has a custodian believe every holder that its numbers aren't finite."""
    from swarmd.swarm.hops.custodian import Custodian

    replace(Custodian, "doubts", lambda it, retained: False)


def took_over_memory() -> None:
    """Remembers every word of everyone about who leads, however long it is."""
    from swarmd.swarm.steps.succession import Succession
    from swarmd.swarm.wire import framing

    def note(it: Any, lead: Any) -> None:
        it._leads.setdefault((lead.step, lead.record_hash), {})[lead.ballot.peer] = lead

    replace(Succession, "_note", note)
    replace(framing, "_checker", lambda bounds, where: lambda value: None)


def own_text() -> None:
    """Reads whatever text a run's settings name."""
    from swarmd.config import DataConfig
    from swarmd.daemon.text import LocalText

    replace(DataConfig, "has_open_source", True)
    replace(LocalText, "lacking", lambda it, data: "")


def fits() -> None:
    """Begins with a run however large it is."""
    from swarmd.daemon import run_search
    from swarmd.swarm.balance import places

    replace(run_search, "unfit", lambda *_: "")
    replace(places, "lacking", lambda *_: "")


def votes() -> None:
    """Has the daemon believe every record that any peer brings, without asking its acceptors."""
    from swarmd.swarm.history.history import History

    async def confirms(*_: Any) -> bool:
        return True

    replace(History, "confirms", confirms)


def given_hop() -> None:
    """Has a stage compute with whatever hop comes, whoever gave it to its sender."""
    from swarmd.swarm.hops.journey import Journeys

    replace(Journeys, "_has_from", lambda it, custodian, key: True)


def leased() -> None:
    """Has a conductor believe whatever a head says that it has finished, or holds."""
    from swarmd.swarm.steps.lease_desk import LeaseDesk

    replace(LeaseDesk, "_borne_out", lambda it, head, ask, indices: indices)


def rumours() -> None:
    """Believes what anybody says of a peer, as if that one had said it, and what anybody says of a stage."""
    from swarmd.swarm.membership.gossip import Gossip
    from swarmd.swarm.membership.liveness import Liveness

    replace(Liveness, "hear_of", lambda it, card, **_: it._take_in(card))
    replace(Gossip, "_is_at_work", lambda *_: True)


def role(kind: str) -> None:
    """Has the daemon take a kind of request from every peer that has greeted."""
    from swarmd.swarm.wire.roles import ROLES, Needs, Role

    (request,) = (it for it in ROLES if it.__name__ == kind)
    _undo.append(functools.partial(ROLES.__setitem__, request, ROLES[request]))
    ROLES[request] = Needs(Role.KNOWN)


DEFENCES: dict[str, Callable[[], None]] = {
    "accept-pace": accept_pace,
    "dial-pace": dial_pace,
    "fits": fits,
    "given-hop": given_hop,
    "gossip-pace": gossip_pace,
    "leased": leased,
    "norm": norm,
    "own-text": own_text,
    "rumours": rumours,
    "second-opinion": second_opinion,
    "took-over-memory": took_over_memory,
    "unanswered": unanswered,
    "votes": votes,
}
"""Functions that switch a defence off, by its name."""

ROLE = "role:"  # and a kind of request: the defence is the role that this needs


def switch_off(defences: str) -> None:
    """Switches off each of the defences that are named, with commas between them."""
    for name in filter(None, defences.split(",")):
        if name.startswith(ROLE):
            role(name.removeprefix(ROLE))
        else:
            DEFENCES[name]()


@contextlib.contextmanager
def weak(defences: str) -> Iterator[None]:
    """Switches off defences of this process for a while."""
    try:
        switch_off(defences)
        yield
    finally:
        while _undo:
            _undo.pop()()


@dataclasses.dataclass
class Weakness:
    """The options that come before swarmd's own."""

    slow: float = 0.0
    memory: int = 0
    quiet: bool = False
    without: str = ""


def parse(arguments: list[str]) -> tuple[Weakness, list[str]]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--without", default="")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    given = vars(parser.parse_args(arguments))
    rest: list[str] = given.pop("rest")
    return Weakness(**given), rest


if __name__ == "__main__":
    weakness, sys.argv[1:] = parse(sys.argv[1:])
    if weakness.quiet:  # its log says the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    if weakness.memory:
        resource.setrlimit(resource.RLIMIT_AS, (weakness.memory, weakness.memory))
    if weakness.slow:
        slow_down(weakness.slow)
    switch_off(weakness.without)
    main()
