"""The run as the next life of this daemon will know it: kept up to date in its home while the daemon works."""

import asyncio

from swarmd.config import fingerprint, to_plain
from swarmd.daemon.home import Home
from swarmd.daemon.known_peers import KnownPeer, merge_known
from swarmd.daemon.remembered import RememberedRun
from swarmd.daemon.run_search import RunSearch
from swarmd.daemon.store import LocalStore
from swarmd.daemon.text import LocalText
from swarmd.net.address_book import AddressBook
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.peer.peer import Peer

LOOK_SECONDS = 10.0  # between two looks whether others are known that aren't written down yet


class RunMemory:
    """The run of a home's ledger and checkpoints, and the last addresses of its other peers."""

    def __init__(
        self,
        home: Home,
        store: LocalStore,
        search: RunSearch,
        text: LocalText,
        membership: Membership,
        book: AddressBook,
    ) -> None:
        assert search.run is not None
        self._home, self._store, self._run = home, store, search.run
        self._others, self._known = search.others, search.known
        self._text = text.absolute()
        self._membership, self._book = membership, book

    def write(self, stage: int | None, *, checkpointed: bool) -> None:
        """Writes it down. `stage`: that is served here, None where there is none yet. `checkpointed`: a version is
        known to be on disks.
        """
        self._known = self._current(stage, checkpointed)
        self._store.remember_run(self._known)

    async def keep(self, peer: Peer) -> None:
        """Writes down who has come, and where they are now, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            assert self._known is not None, "it was written down before there was a peer"
            current = self._current(peer.stage, peer.history.checkpointed)
            if {it.peer: it for it in current.known} != {it.peer: it for it in self._known.known}:
                self._known = current
                self._store.remember_run(current)

    def _current(self, stage: int | None, checkpointed: bool) -> RememberedRun:
        before = self._known
        others = merge_known(self._met(), (*(before.known if before is not None else ()), *self._others))
        return RememberedRun(
            run=to_plain(self._run),
            fingerprint=fingerprint(self._run),
            stage=before.stage if stage is None and before is not None else stage,
            peers=tuple(address for it in others for address in it.addresses),
            checkpointed=checkpointed or self._home.is_checkpointed(before),
            data=self._text.source or "",
            tokenizer=self._text.tokenizer or "",
            known=others,
        )

    def _met(self) -> list[KnownPeer]:
        """The others as they are known in this life, those heard of last first."""
        members = self._membership.members()
        order = sorted(members, key=lambda peer: (-members[peer].heard, peer))
        known = [(peer, self._book.known(peer)) for peer in order]
        return [
            KnownPeer(peer, tuple(map(str, it.all())), len(it.worked), it.machine) for peer, it in known if it.all()
        ]
