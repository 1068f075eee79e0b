"""The beginning of a run, as far as a peer knows: it founded the run itself, or has heard of it with its place."""

from swarmd.swarm.wire.messages.presence import Place
from swarmd.values import PeerId


class Origin:
    """The run's founder, whether the run goes on from disks, and how far it had come."""

    def __init__(self) -> None:
        self.founder: PeerId = ""  # the acceptor of the run's first record
        self.founded = False  # by this incarnation of this peer
        self.resumes = False  # the run goes on from what is on disks, and it isn't decided yet from where
        self.guide: PeerId = ""  # the peer that gave this one its place
        self.heard = 0  # the highest version of those whom this peer came by: they may be gone again

    def found(self, own: PeerId, *, resumes: bool) -> None:
        """This peer founds the run, or founds it again."""
        self.founder, self.founded, self.resumes = own, True, resumes

    def learn(self, place: Place, own: PeerId, *, told: bool, ready: bool) -> None:
        """Takes in what comes with a place. `told`: this peer has told others that it is the founder; before that, a
        founder of its name was an earlier incarnation of it, if it was it at all. `ready`: it has a state, so it is
        decided from where the run goes on.
        """
        self.heard = max((self.heard, *(card.version for card in place.cards)))
        if place.founder and (place.founder != own or not told):
            self.founder, self.founded = place.founder, False
        self.resumes = place.resumes and not ready

    def decided(self) -> None:
        """It is decided from where the run goes on."""
        self.resumes = False
