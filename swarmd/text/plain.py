"""Plain text files: UTF-8 becomes pieces of whole letters, and what isn't text is recognised by its content.

Bytes here and there that aren't UTF-8 are replaced and counted. A file with more of them, or with a NUL, is refused
with a sentence.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

from swarmd.errors import ConfigError
from swarmd.text.blocks import ARROW_MAGIC, PARQUET_MAGIC, is_compressed
from swarmd.text.reading import Piece, Reading

REPLACED_LIMIT = 0.01  # of a file's bytes that aren't UTF-8: German in Latin-1 has more, a slip in a large file less
REPLACEMENT = "\ufffd"
WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # it begins like the next one
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
)
TAR = (b"ustar", 257)  # and where it stands
KINDS = (
    (PARQUET_MAGIC, "Parquet that was compressed once more"),
    (ARROW_MAGIC, "Arrow that was compressed once more"),
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF-", "a PDF"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"\x5d\0\0", "compressed with lzma"),
    (b"\x1f\x9d", "compressed with compress"),
)
"""How files begin that are often taken for text."""


def read_text(blocks: Iterator[bytes], path: Path, reading: Reading) -> Iterator[Piece]:
    """A file's text as one document. Raises ConfigError where it is no text."""
    rest, replaced, nbytes = b"", 0, 0
    for number, block in enumerate(blocks):
        if number == 0:
            check_kind(block, path)
            block = block.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901 - it says how the file is written
        text, rest, bad = _decode(rest + block, final=False)
        replaced, nbytes = replaced + bad, nbytes + len(block)
        _check(text, replaced, nbytes, path)
        yield Piece(text, False, str(path))
    text, _, bad = _decode(rest, final=True)
    _check(text, replaced + bad, nbytes, path)
    if replaced + bad:
        reading.remarks.append(f"{replaced + bad:,} places in {path} aren't UTF-8; each became {REPLACEMENT}")
    yield Piece(text, True, str(path))


def check_kind(head: bytes, path: Path) -> None:
    """Raises ConfigError for first bytes, unpacked, of what is well known not to be text."""
    if wide := next((name for mark, name in WIDE if head.startswith(mark)), ""):
        raise ConfigError(f"{path} is {wide}; make UTF-8 of it: iconv -f {wide} -t UTF-8.")
    kind = next((kind for magic, kind in KINDS if head.startswith(magic)), "")
    kind = kind or ("a tar archive" if head[TAR[1] :].startswith(TAR[0]) else "")
    kind = kind or ("compressed twice" if is_compressed(head) else "")
    if kind:
        raise ConfigError(f"{path} is {kind}, not text; unpack or convert it, or leave it out.")


def _decode(data: bytes, *, final: bool) -> tuple[str, bytes, int]:
    """The text, the bytes of a letter that isn't whole yet, and how many places were replaced."""
    try:
        text, used = codecs.utf_8_decode(data, "strict", final)
        return text, data[used:], 0
    except UnicodeDecodeError:
        text, used = codecs.utf_8_decode(data, "replace", final)
    return text, data[used:], text.count(REPLACEMENT) - data[:used].count(REPLACEMENT.encode())


def _check(text: str, replaced: int, nbytes: int, path: Path) -> None:
    if "\0" in text:
        raise ConfigError(f"{path} is not text: it has bytes that are zero; leave it out.")
    if replaced > REPLACED_LIMIT * nbytes:
        raise ConfigError(
            f"{path} is not UTF-8 ({replaced:,} places of its first {nbytes:,} bytes); leave it out, or make UTF-8 of "
            "it if it is text, as with iconv -f LATIN1 -t UTF-8."
        )
