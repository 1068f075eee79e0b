"""Greets the peers that a home knows of its run and that nobody has brought this daemon together with in this life.

They may be where they were while this daemon is not, or in the other half of a swarm that was parted.
"""

import asyncio
import random
from collections.abc import Sequence

from swarmd.daemon.candidates import Candidate, Candidates
from swarmd.daemon.known_peers import KnownPeer
from swarmd.errors import Mismatch, PeerFault, PeerUnreachable, Refused
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.links import Links


async def meet_others(others: Sequence[KnownPeer], membership: Membership, links: Links, rng: random.Random) -> None:
    """Greets the others that aren't members yet, until it has met all of them, or is cancelled."""
    loop, unmet = asyncio.get_running_loop(), Candidates(rng)
    for known in others:
        unmet.add(Candidate(known.peer))
    while True:
        for it in unmet.all():
            if membership.get(it.peer) is not None:
                unmet.remove(it)
        if not unmet.all():
            return
        for it in unmet.next(loop.time(), at_once=1):
            try:
                await links.greet(it.peer)
            except Mismatch:
                unmet.remove(it)
            except Refused as refusal:
                unmet.failed(it, "refused", str(refusal), loop.time())
            except (PeerUnreachable, TimeoutError, PeerFault) as trouble:
                unmet.failed(it, "unreachable", str(trouble), loop.time())
            else:  # it may have no run yet, and comes by itself then, or is known from now on
                unmet.failed(it, "no run", "", loop.time())
        await asyncio.sleep(unmet.wait_s(loop.time()))
