"""`python -m tests.e2e.confined start ...` is swarmd with the system calls, sockets, paths and user of the unit.

Needs root, libseccomp and systemd-analyze, but no systemd that runs. `probe` in the place of `start` tries what is
forbidden. The rest of the unit (other users' processes, devices) is systemd's own, and not done here.
"""

import ctypes
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from swarmd.daemon import service
from swarmd.daemon.service_access import HIDDEN
from tests.house import ROOT

USER = 61200  # of those that systemd gives to DynamicUser
CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    32,
    4096,
    8192,
    16384,
    1 << 18,
)
PR_SET_NO_NEW_PRIVS = 38
SCMP_ACT_ALLOW, SCMP_CMP_EQ, SCMP_ERROR = 0x7FFF0000, 4, -1
ACT_EPERM = 0x00050000 | errno.EPERM
KEPT = (Path(sys.base_prefix), Path(sys.prefix), ROOT)  # BindReadOnlyPaths= of a drop-in would give them
PRIVATE = (Path("/tmp"), Path("/var/tmp"))  # PrivateTmp=yes

libc = ctypes.CDLL(None, use_errno=True)


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp of libseccomp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def why_not() -> str:
    """Why nothing can be confined here; "" if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("systemd-analyze") is None:
        return "systemd-analyze is not installed"
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return "libseccomp is not installed"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "may not make a mount namespace"


def settings(name: str) -> list[str]:
    """The values of a setting of the unit, as often as it stands there."""
    lines = service.unit_text(user=False).splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def system_calls() -> set[str]:
    """The names that the unit's filter lets through."""
    allowed = group("@default")
    for line in settings("SystemCallFilter"):
        named = set().union(*(group(word) for word in line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed | group("@default")


def group(name: str) -> set[str]:
    """The system calls of a group, as systemd has them."""
    if not name.startswith("@"):
        return {name}
    told = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    words = (line.strip() for line in told.stdout.splitlines()[1:])
    return set().union(*(group(word) for word in words if word and not word.startswith("#")))


def checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source: Path | None, target: Path, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if it is None else os.fsencode(it) for it in (source, target, kind, data)]
    checked(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]))


def confine_paths(home: Path) -> None:
    """ProtectSystem=strict, ProtectHome=yes and PrivateTmp=yes, but for this Python, this checkout and the homes."""
    assert (settings("ProtectSystem"), settings("ProtectHome"), settings("PrivateTmp")) == (
        ["strict"],
        ["yes"],
        ["yes"],
    )
    checked(libc.unshare(CLONE_NEWNS))
    mount(None, Path("/"), None, MS_REC | MS_PRIVATE)
    given = {path.resolve() for path in (*KEPT, home)}
    kept = {path for path in given if given.isdisjoint(path.parents)}  # a checkout may hold its environment
    for place in (*HIDDEN, *PRIVATE):
        if place.is_dir():
            cover(place, [path for path in kept if path.is_relative_to(place)])
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4])
        if point not in PRIVATE and not point.is_relative_to("/proc") and not point.is_relative_to("/dev"):
            mount(None, point, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
    mount(home, home, None, MS_BIND)
    mount(None, home, None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV)


def cover(place: Path, kept: list[Path]) -> None:
    """Lays an empty file system over a directory, through which only these paths in it are seen."""
    aside = [Path(tempfile.mkdtemp(dir="/run")) for _ in kept]
    for path, other in zip(kept, aside, strict=True):
        mount(path, other, None, MS_BIND | MS_REC)
    mount(Path("tmpfs"), place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" if place in PRIVATE else "mode=755")
    for path, other in zip(kept, aside, strict=True):
        path.mkdir(parents=True)
        mount(other, path, None, MS_MOVE)
        other.rmdir()


def confine_calls(names: Iterable[str], families: Iterable[str]) -> None:
    """Loads a filter that answers EPERM to all other system calls, and to sockets of other families."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ACT_EPERM)))
    numbers = {name: int(library.seccomp_syscall_resolve_name(name.encode())) for name in names}
    for name, number in numbers.items():
        if number >= 0 and name != "socket":  # the others are of other machines
            checked(library.seccomp_rule_add_array(context, SCMP_ACT_ALLOW, number, 0, None))
    for family in families:
        number = int(getattr(socket, family))
        is_it = Comparison(0, SCMP_CMP_EQ, number, 0)
        checked(library.seccomp_rule_add_array(context, SCMP_ACT_ALLOW, numbers["socket"], 1, ctypes.byref(is_it)))
    checked(library.seccomp_load(context))


def become_nobody() -> None:
    """The user of the service: no groups, no capabilities, no way back."""
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.umask(0o077)


def hand_over(directory: Path) -> None:
    """Gives a directory to the service's user, as StateDirectory= does."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, USER, USER)


def probe() -> dict[str, str]:
    """What each of these forbidden things comes to, and what is seen of home directories."""
    tries: dict[str, Callable[[], object]] = {
        "mount": lambda: mount(Path("tmpfs"), Path("/tmp"), "tmpfs", 0),
        "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
        "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "write": lambda: Path("/etc/swarmd-was-here").touch(),
        "become root": lambda: os.setuid(0),
    }
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    return found | {"homes": " ".join(str(path) for place in HIDDEN if place.is_dir() for path in place.iterdir())}


def main() -> None:
    arguments = sys.argv[1:]
    names, families = system_calls(), settings("RestrictAddressFamilies")[0].split()
    home = Path(arguments[arguments.index("--home") + 1])
    home.mkdir(exist_ok=True)
    hand_over(home.parent)
    confine_paths(home.parent)
    os.chdir(ROOT)  # as it is seen now
    become_nobody()
    confine_calls(names, families)
    if arguments[0] == "probe":
        print(json.dumps(probe()))
    else:
        os.execv(sys.executable, [sys.executable, "-m", "swarmd", *arguments])


if __name__ == "__main__":
    main()
