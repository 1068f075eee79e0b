"""The chunks in which a stage's state travels, and its root: one hash of all its bytes. The same at every peer, on the
wire and on disks. Pure.

The size of a chunk follows from the size of the state alone, so equal states have equal chunks and equal roots, whoever
names them.
"""

import hashlib

from swarmd.values import Buffer

CHUNK_BYTES = 4 << 20  # at least; hashed in about 4 ms, so that the event loop never stalls
CHUNKS_LIMIT = 24_000  # of a state, whose hashes must fit a frame's header: 94 GiB in chunks of 4 MiB


def chunk_size(nbytes: int) -> int:
    """Bytes of each chunk but the last of a state of so many bytes."""
    size = CHUNK_BYTES
    while chunk_count(nbytes, size) > CHUNKS_LIMIT:
        size *= 2
    return size


def chunk_count(nbytes: int, size: int) -> int:
    """The number of chunks of a state."""
    return -(-nbytes // size)


def chunk_hash(chunk: Buffer) -> str:
    """Names a chunk by its content."""
    return hashlib.blake2b(chunk, digest_size=16).hexdigest()


def root_hash(nbytes: int, hashes: tuple[str, ...]) -> str:
    """Names a state by its content: by its size and the hashes of its chunks."""
    return hashlib.blake2b(f"{nbytes}:{','.join(hashes)}".encode(), digest_size=16).hexdigest()


def state_root(state: Buffer) -> str:
    """The root of a state that is at hand. Hashes all of it at once: not for the event loop."""
    view = memoryview(state)
    size = chunk_size(view.nbytes)
    return root_hash(view.nbytes, tuple(chunk_hash(view[at : at + size]) for at in range(0, view.nbytes, size)))
