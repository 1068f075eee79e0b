"""The bytes of a file in blocks of bounded size, unpacked where they are compressed (gzip, Zstandard, xz, bzip2).

What a file is shows its content, not its name. Unpacking takes bounded memory, and ends with a sentence where more
comes out than any text gives. Zstandard is unpacked by pyarrow, which comes with the extra `data`.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from swarmd.errors import ConfigError
from swarmd.files import open_regular
from swarmd.text.extras import extra
from swarmd.text.reading import Reading

PIECE_BYTES = 1 << 20  # bytes read at once: bounds memory whatever the file
HEAD_BYTES = 512  # a tar archive says what it is in the bytes from 257 on
XZ_MEMORY_BYTES = 256 << 20  # `xz -9` takes 65 MiB to unpack
UNPACKED_RATIO_LIMIT = 500  # packed histories of Wikipedia come to 200
UNPACKED_FREE_BYTES = 256 << 20  # unpacked whatever the ratio
PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1\0\0"
ZSTANDARD_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPED_MAGICS = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))  # of frames without content
POINTERS = ((b"version https://git-lfs.github.com/spec/", "git lfs pull"), (b"/annex/objects/", "git annex get"))
"""How files begin that stand for large ones, and how those are fetched."""

Unpack = Callable[[BinaryIO], Iterator[bytes]]


def read_head(path: Path) -> bytes:
    """The first bytes of a file as they lie there. Raises OSError."""
    with open_regular(path) as file:
        return file.read(HEAD_BYTES)


def check_fetched(head: bytes, path: Path) -> None:
    """Raises ConfigError for the first bytes of a file that only names its content, as large ones are left by git."""
    fetch = next((command for magic, command in POINTERS if head.startswith(magic)), "")
    if fetch:
        raise ConfigError(f"{path} only stands for the file itself; fetch that, as with {fetch}.")


def read_blocks(path: Path, reading: Reading) -> Iterator[bytes]:
    """The content of a file, unpacked if it is compressed. `reading` counts the bytes as they lie on the disk.

    Raises OSError, and ConfigError for compressed files that are damaged or no text.
    """
    with open_regular(path) as file:
        unpack = _unpack_of(file.read(HEAD_BYTES))
        file.seek(0)
        blocks = _read(file) if unpack is None else _bounded(_sound(unpack, file, path), file, path)
        taken = 0
        for block in blocks:
            reading.took(file.tell() - taken)
            taken = file.tell()
            yield block


def _unpack_of(head: bytes) -> Unpack | None:
    """The way to unpack a file that begins so; None: it isn't compressed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return lambda file: _read(gzip.GzipFile(fileobj=file))
    if head.startswith((ZSTANDARD_MAGIC, *SKIPPED_MAGICS)):
        return _unpack_zstandard
    if head.startswith(b"\xfd7zXZ\0"):
        return _unpack_xz
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):  # text may begin with BZh, too
        return lambda file: _read(bz2.BZ2File(file))
    return None


def is_compressed(head: bytes) -> bool:
    """True for the first bytes of a compressed file."""
    return _unpack_of(head) is not None


def _read(file: Any) -> Iterator[bytes]:
    while block := file.read(PIECE_BYTES):
        yield block


def _unpack_zstandard(file: BinaryIO) -> Iterator[bytes]:
    arrow = extra("pyarrow")
    return _read(arrow.CompressedInputStream(arrow.PythonFile(file, mode="r"), "zstd"))


def _unpack_xz(file: BinaryIO) -> Iterator[bytes]:
    """One or more streams, with zeros between them, within a bound of memory, which lzma.open has not."""
    while True:
        decoder = lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)
        while not decoder.eof:
            raw = file.read(PIECE_BYTES) if decoder.needs_input else b""
            if decoder.needs_input and not raw:
                raise EOFError("it ends too early")
            if block := decoder.decompress(raw, PIECE_BYTES):
                yield block
        rest = decoder.unused_data
        while not rest.strip(b"\0"):
            rest = file.read(PIECE_BYTES)
            if not rest:
                return
        file.seek(-len(rest.lstrip(b"\0")), 1)


def _sound(unpack: Unpack, file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The blocks of a compressed file. Raises ConfigError where it is damaged."""
    try:
        yield from unpack(file)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble, not the file's
        raise ConfigError(
            f"{path} can't be unpacked ({str(error).splitlines()[0]:.200}); fetch it again, or unpack it yourself."
        ) from error


def _bounded(blocks: Iterator[bytes], file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The same blocks, as long as they can be text. Raises ConfigError."""
    unpacked = 0
    for block in blocks:
        unpacked += len(block)
        if unpacked > max(UNPACKED_FREE_BYTES, UNPACKED_RATIO_LIMIT * file.tell()):
            raise ConfigError(
                f"{path} unpacks to more than {UNPACKED_RATIO_LIMIT} times its size, which text doesn't; "
                "leave it out, or unpack it yourself if it is text all the same."
            )
        yield block
