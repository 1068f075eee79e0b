"""The versions that cards claim, as far as they are believed: nothing proves one.

Anybody may write a version on its own card that doesn't exist. This peer goes after a version if one that took part in
a step of this history is there, or if most of those around who are at work are. A peer that was away long enough to
know none of them is among the few; so it still hears that others are ahead. Whoever is doubted, as it has shown no
record of its version (`standing.py`), isn't asked.
"""

from swarmd.swarm.history.history import History
from swarmd.swarm.membership.states import AT_WORK
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.messages.presence import Card


def believed_version(membership: Membership, history: History) -> int:
    """The highest version that is believed to exist: this peer's at least."""
    own, version = membership.own.peer, history.version
    if membership.newest().version <= version:
        return version
    doubted = membership.standing.doubted
    others = [it for it in membership.kin() if it.peer != own and it.peer not in doubted]
    others.sort(key=lambda it: -it.version)
    known = next((it.version for it in others if it.version <= version or history.chain.took_part(it.peer)), version)
    said = [it.version for it in others if it.state in (*AT_WORK, "finished")]
    return max(version, known, said[len(said) // 2] if said else 0)


def believed_newest(membership: Membership, history: History) -> Card:
    """The card of the peer to be asked for what comes next: the newest of those whose version is believed, or the one
    that says the most if nobody is past this peer's version else.
    """
    newest, most = membership.newest(), believed_version(membership, history)
    if newest.version <= most or most <= history.version:
        return newest
    asked = [it for it in membership.kin() if it.version <= most and it.peer not in membership.standing.doubted]
    return max(asked, key=lambda it: (it.version, it.peer))
