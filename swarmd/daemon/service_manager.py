"""Orders to systemd from `swarmd service`: stop and disable the instances of the unit, show them and their logs.

Relies on `systemctl` and `journalctl`, which talk to the terminal themselves.
"""

import re
import shutil
import subprocess

from swarmd.daemon.service import places
from swarmd.errors import ConfigError

ALL = "swarmd@*.service"
INSTANCE = re.compile(r"[\w:.-]+")
LOG_LINES = 100


def unit_of(instance: str | None) -> str:
    """The unit of an instance, or the pattern of all. Raises ConfigError."""
    if instance is None:
        return ALL
    name = instance.removeprefix("swarmd@").removesuffix(".service")
    if not INSTANCE.fullmatch(name):
        raise ConfigError(f"{instance} is no instance of the service; one is called by its GPU's number, as 0.")
    return f"swarmd@{name}.service"


def instances(*, user: bool) -> list[str]:
    """The units that are loaded, or start with the machine. Raises ConfigError."""
    told = subprocess.run(
        [*_command("systemctl", user=user), "list-units", "--all", "--plain", "--no-legend", ALL],
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = {line.split()[0] for line in told.stdout.splitlines() if line.startswith("swarmd@")}
    enabled = {path.name for path in places(user=user).unit.parent.glob(f"*.wants/{ALL}")}
    return sorted(loaded | enabled)


def stop_all(*, user: bool) -> list[str]:
    """Drains and disables every instance; returns their names. Raises ConfigError."""
    found = instances(user=user)
    if found and _run("systemctl", "disable", "--now", *found, user=user) != 0:
        raise ConfigError("systemd didn't stop all instances, and says above why; nothing was removed.")
    return found


def reload(*, user: bool) -> None:
    """Has systemd read its units again."""
    _run("systemctl", "daemon-reload", user=user)


def show(instance: str | None, *, user: bool) -> int:
    """Shows how the instances are; returns systemctl's exit code. Raises ConfigError."""
    unit = unit_of(instance)
    if instance is None and not instances(user=user):
        raise ConfigError(f"no instance is there; {'' if user else 'sudo '}{start_line(user=user)} starts one.")
    return _run("systemctl", "status", "--no-pager", "--lines", "3", unit, user=user)


def show_logs(instance: str | None, *, user: bool, follow: bool) -> int:
    """Shows what the instances logged; returns journalctl's exit code. Raises ConfigError."""
    more = ["--follow"] if follow else ["--no-pager"]
    return _run("journalctl", "--unit", unit_of(instance), "--lines", str(LOG_LINES), *more, user=user)


def start_line(*, user: bool) -> str:
    """The command that starts an instance."""
    return f"systemctl {'--user ' if user else ''}enable --now swarmd@0"


def is_there() -> bool:
    """True if this machine has systemd."""
    return shutil.which("systemctl") is not None


def _command(program: str, *, user: bool) -> list[str]:
    found = shutil.which(program)
    if found is None:
        raise ConfigError(f"{program} isn't on this machine, so no systemd runs the service; use `swarmd start`.")
    return [found, *(["--user"] if user else [])]


def _run(program: str, *arguments: str, user: bool) -> int:
    return subprocess.run([*_command(program, user=user), *arguments], check=False).returncode
