"""A peer's lasting identity: the seed of its Ed25519 key, in a file that only its owner can read.

The file is one line: a format word, the 32-byte seed in hexadecimal, and a checksum, so that a damaged file is told
from another identity. Knows no libp2p; the transport makes the key from the seed.
"""

import contextlib
import hashlib
import os
from pathlib import Path

from swarmd.errors import ConfigError
from swarmd.files import open_private, write_atomically

_FORMAT = "swarmd-ed25519"
_SEED_BYTES = 32
_FILE_BYTES = 4096  # more than this is no key file


def load_or_create_seed(path: Path) -> bytes:
    """The seed in `path`; a new one is written there first if there is none. Raises ConfigError."""
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(
            f"identity {path} can't be read ({error.strerror}); mend that or choose another --home"
        ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = os.urandom(_SEED_BYTES)
        write_atomically(path, f"{_FORMAT} {seed.hex()} {_checksum(seed)}\n".encode("ascii"), prefix=".identity-")
        return _load(path)
    except OSError as error:
        raise ConfigError(f"the identity {path} can't be written ({error.strerror}); choose another --home") from error


def _load(path: Path) -> bytes:
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:  # who could read it until now has read it
        words = file.read(_FILE_BYTES).decode("ascii", errors="replace").split()
    if len(words) == 3 and words[0] == _FORMAT:
        with contextlib.suppress(ValueError):
            seed = bytes.fromhex(words[1])
            if len(seed) == _SEED_BYTES and words[2] == _checksum(seed):
                return seed
    raise ConfigError(f"the identity {path} is damaged; restore it, or remove it to start as a new peer")


def _checksum(seed: bytes) -> str:
    return hashlib.blake2b(seed, digest_size=4).hexdigest()
