"""The files of `swarmd service`: the systemd unit that comes with this package, with the paths of this machine in it.

The unit is `configs/systemd/swarmd@.service`; between its marks stands what only the system's manager can do. Files are
written and removed here, and what to do next is said; what systemd does is `service_manager.py`.
"""

import contextlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from swarmd.daemon.service_access import needed_to_start, obstacle
from swarmd.daemon.service_copy import PLACE, remove_copy
from swarmd.errors import ConfigError

UNIT, EXAMPLE = "swarmd@.service", "example.env"
PROGRAM = "/usr/local/bin/swarmd"  # as it stands in the unit
SYSTEM_ENVIRONMENT = "/etc/swarmd"
SYSTEM_BEGIN, SYSTEM_END = "# [system]", "# [end]"  # around what a user's manager has no right to


@dataclass(frozen=True)
class Places:
    """The paths of the service's files."""

    unit: Path
    environment: Path  # a directory: one file for each instance


def places(*, user: bool) -> Places:
    """The places that systemd looks at, of the system or of this user."""
    if not user:
        return Places(Path("/etc/systemd/system") / UNIT, Path(SYSTEM_ENVIRONMENT))
    config = Path.home() / ".config"
    return Places(config / "systemd/user" / UNIT, config / "swarmd")


def homes(*, user: bool) -> str:
    """The directory of the instances' homes, as systemd has it (since version 254 for a user's)."""
    return str(Path.home() / ".local/state/swarmd") if user else "/var/lib/swarmd"


def program() -> str:
    """The command with which systemd starts this swarmd: the one installed beside this Python, else the module."""
    beside = Path(sys.executable).parent / "swarmd"
    found = str(beside) if beside.exists() else shutil.which("swarmd")
    return _quoted(found) if found else f"{_quoted(sys.executable)} -m swarmd"


def _quoted(path: str) -> str:
    """A path in a unit: percent signs are specifiers there."""
    return shlex.quote(path).replace("%", "%%")


def check_executable(*, user: bool) -> None:
    """Raises ConfigError, with a remedy, if the service's user can't run this swarmd."""
    if not user and (why := obstacle(needed_to_start())):
        raise ConfigError(
            f"the service's user can't run this swarmd: {why}; `sudo {program()} service install --copy` puts a copy "
            f"of this environment under {PLACE} and lets the service run that."
        )


def unit_text(*, user: bool, command: str = "") -> str:
    """The unit for this machine. `command` starts swarmd; "": the one that is running."""
    text = _packaged(UNIT).replace(PROGRAM, command or program())
    if not user:
        return text
    before, _, rest = text.partition(SYSTEM_BEGIN)
    text = before + rest.partition(f"{SYSTEM_END}\n")[2]
    text = text.replace(SYSTEM_ENVIRONMENT, "%E/swarmd").replace("multi-user.target", "default.target")
    return text.replace("Wants=network-online.target\nAfter=network-online.target\n", "")


def _packaged(name: str) -> str:
    return (resources.files("configs") / "systemd" / name).read_text(encoding="utf-8")


def install(*, user: bool, command: str = "", cards: Sequence[int] = ()) -> Places:
    """Writes the unit, an example of its settings, and those of each card's instance that has none yet. Raises
    ConfigError.
    """
    where = places(user=user)
    try:
        where.unit.parent.mkdir(parents=True, exist_ok=True)
        where.environment.mkdir(parents=True, exist_ok=True)
        where.unit.write_text(unit_text(user=user, command=command), encoding="utf-8")
        (where.environment / EXAMPLE).write_text(_packaged(EXAMPLE), encoding="utf-8")
        for card in cards:
            with contextlib.suppress(FileExistsError), settings_of(where, card).open("x", encoding="utf-8") as file:
                file.write(_packaged(EXAMPLE))
    except OSError as error:
        raise ConfigError(f"can't write {error.filename} ({error.strerror}); {_other_rights(user=user)}.") from error
    return where


def settings_of(where: Places, card: int) -> Path:
    """The file with the settings of a card's instance."""
    return where.environment / f"{card}.env"


def uninstall(*, user: bool) -> None:
    """Removes what `install` wrote. Settings and homes stay. Raises ConfigError."""
    where = places(user=user)
    try:
        where.unit.unlink(missing_ok=True)
        (where.environment / EXAMPLE).unlink(missing_ok=True)
        if not user:
            remove_copy()
    except OSError as error:
        raise ConfigError(f"can't remove {error.filename} ({error.strerror}); {_other_rights(user=user)}.") from error


def _other_rights(*, user: bool) -> str:
    return "choose another home directory" if user else f"use `sudo {program()} service`, or --user for your own"


def advice(where: Places, cards: Sequence[int], *, user: bool) -> str:
    """The commands to be given next."""
    systemctl = "systemctl --user" if user else "sudo systemctl"
    instances = " ".join(f"swarmd@{card}" for card in cards or [0])
    written = " ".join(str(settings_of(where, card)) for card in cards)
    copied = f"copy {where.environment / EXAMPLE} to {where.environment}/0.env and edit it"
    lines = [
        f"wrote {where.unit}",
        f"settings: {f'edit {written}' if cards else copied}",
        f"start it: {systemctl} daemon-reload && {systemctl} enable --now {instances}",
        f"after an upgrade: {systemctl} restart 'swarmd@*'",
    ]
    if user:
        lines.append("after logout: loginctl enable-linger")
    return "\n".join(lines)
