"""A daemon's run, as its next life knows it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from swarmd.config import ModelConfig, RunConfig, fingerprint, to_plain
from swarmd.daemon.home import Home
from swarmd.daemon.known_peers import KnownPeer
from swarmd.daemon.remembered import RememberedRun
from swarmd.daemon.run_memory import RunMemory
from swarmd.daemon.store import LocalStore
from swarmd.daemon.text import LocalText
from swarmd.net.address_book import AddressBook
from swarmd.net.addresses import parse
from swarmd.net.limits import TransportLimits
from swarmd.swarm.membership.table import Membership
from swarmd.swarm.wire.own_card import OwnCard, first_card

RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16))


def test_what_is_written_down_of_others_is_who_was_met_and_who_was_known_before(tmp_path: Path) -> None:
    """All their addresses, what worked first; also before a stage is open."""
    one, two = (
        "12D3KooWNdo5kjPXU4ToRMdjC2siQYJQWhyavChcEvp8m1pB1Jbo",
        "12D3KooWLRPJoDwC5h3QfNnQ2ZyhMVzTQb2mMhkRLz2dHUPLhGXn",
    )
    bridge, lan = f"/ip4/172.17.0.1/tcp/4001/p2p/{one}", f"/ip4/10.77.0.1/tcp/4001/p2p/{one}"
    book = AddressBook(TransportLimits(), "here/here")
    book.learn(one, [bridge, lan], "there/there")
    worked = parse(lan)
    assert worked is not None
    book.worked(one, worked)
    membership = Membership(OwnCard(first_card("own", 1, (), "cpu", ())))
    for number, peer in enumerate((one, "nowhere")):
        membership.hear(first_card(peer, 1, (), "cpu", ()), float(number))
    before = KnownPeer(two, (f"/ip4/10.77.0.3/tcp/4001/p2p/{two}",))
    known = RememberedRun(to_plain(RUN), fingerprint(RUN), 1, known=(before,))
    search: Any = SimpleNamespace(run=RUN, known=known, others=(before, KnownPeer(one, (bridge,))))
    home = Home(tmp_path)
    memory = RunMemory(home, LocalStore(home), search, LocalText(), membership, book)
    memory.write(None, checkpointed=False)
    written = home.remembered_run()
    assert written is not None
    assert (written.stage, written.checkpointed, written.data) == (1, False, "")
    assert written.known == (KnownPeer(one, (lan, bridge), 1, "there/there"), before)
    assert written.peers == (lan, bridge, *before.addresses)
    memory.write(0, checkpointed=True)
    memory.write(2, checkpointed=False)
    written = home.remembered_run()
    assert written is not None
    assert (written.stage, written.checkpointed) == (2, True), "it has been on disks once"
