"""The name of this process's machine and network: it tells peers whether they share the loopback.

A machine is known by the boot of its kernel, so containers on it count as one; each network namespace has a loopback
of its own. Peers compare these names and learn nothing else from them.
"""

import hashlib
import os
import socket
import uuid
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK = Path("/proc/self/ns/net")
HOST_VARIABLE = "SWARMD_MACHINE"
"""Names the machine instead of its boot, where several pretended machines share one kernel."""


def machine_name() -> str:
    """HOST/NETWORK, both hashed: equal HOSTs are one machine, equal NETWORKs share the loopback."""
    return f"{_hashed(os.environ.get(HOST_VARIABLE) or _boot())}/{network_name()}"


def network_name() -> str:
    """The network namespace of this process, hashed together with the boot that made it."""
    try:
        namespace = str(NETWORK.stat().st_ino)
    except OSError:
        namespace = ""  # a system without namespaces has one network
    return _hashed(f"{_boot()} {namespace}")


def _boot() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return f"{uuid.getnode():x} {socket.gethostname()}"  # not Linux


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
