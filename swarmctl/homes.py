"""The home that a command is meant for when none was named: the user's own daemon, else the one service.

Where a user's daemons run one on each card (`swarmd start --gpu all`), their homes are in that home. A home counts when
its control socket takes connections. Those of the system's services are seen by root alone.
"""

import os
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

from swarmd.errors import ControlError

SYSTEM_HOMES = Path("/var/lib/swarmd")
SYSTEM_UNIT = Path("/etc/systemd/system/swarmd@.service")
CONNECT_TIMEOUT_S = 1.0  # a daemon that lives accepts at once


def default_home() -> Path:
    """The home that is meant when none is named and no service is looked for."""
    return Path(os.environ.get("SWARMD_HOME") or Path.home() / ".swarmd")


def user_homes() -> tuple[Path, ...]:
    """Directories with the homes of this user's services: the first since systemd 254, the other before."""
    return Path.home() / ".local/state/swarmd", Path.home() / ".config/swarmd"


def service_homes(system: Path = SYSTEM_HOMES) -> list[Path]:
    """Homes of services of this machine that answer and that this user may see."""
    found = []
    for place in (*user_homes(), system):
        try:
            found += [home for home in sorted(place.iterdir()) if answers(home)]
        except OSError:
            continue  # not there, or not ours to see
    return found


def card_homes(home: Path) -> list[Path]:
    """Homes in a home, of daemons that run one on each card and that answer."""
    found = {int(path.name[4:]): path for path in home.glob("gpu-*") if path.name[4:].isdecimal() and answers(path)}
    return [found[card] for card in sorted(found)]


def home_of(named: Path) -> Path:
    """The home that is meant where one is named: of several daemons in it one must be. Raises ControlError."""
    if answers(named) or not (cards := card_homes(named)):
        return named
    if len(cards) > 1:
        raise ControlError(f"a daemon for each card runs there; name one: {_choices(cards)}.")
    return cards[0]


def answers(home: Path) -> bool:
    """True if a daemon takes connections at a home."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(os.fspath(home / "control.sock"))
        except TimeoutError:
            return True  # its queue is full, so somebody listens
        except OSError:
            return False
        return True


def find_home(system: Path = SYSTEM_HOMES) -> tuple[Path, bool]:
    """The home that is meant when none is named, and whether it is a service's. Raises ControlError."""
    own = home_of(default_home())
    if os.environ.get("SWARMD_HOME") or answers(own):
        return own, False
    found = service_homes(system)
    if len(found) > 1:
        raise ControlError(f"several services run here; name one: {_choices(found)}.")
    return (found[0], True) if found else (own, False)


def hint(system_unit: Path = SYSTEM_UNIT) -> str:
    """More to be said where no daemon was found; "" if there is nothing."""
    if os.geteuid() == 0 or not system_unit.exists():
        return ""
    return " Services of the system are seen by root alone: sudo swarmctl."


def _choices(homes: Sequence[Path]) -> str:
    return ", ".join(f"--home {shlex.quote(os.fspath(home))}" for home in homes)
