"""Compressed files: read as what is in them whatever they are called, in bounded memory; damage and bombs are said."""

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmd.config import DataConfig
from swarmd.errors import ConfigError
from swarmd.text import blocks
from swarmd.text.reading import Reading
from swarmd.text.tokens import load_tokens
from tests.text.texts import TEXT


def zstandard(data: bytes) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
}
NOISE = bytes(range(32, 127)) * 20


def digest_of(path: Path) -> str:
    return load_tokens(DataConfig(source=str(path)), 256, path.parent.parent / "cache", needed=0).digest


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl", "rows.JSON"])
def test_the_tokens_are_those_of_what_is_in_the_file(ending: str, name: str, tmp_path: Path) -> None:
    content = TEXT if name == "text.txt" else "".join(json.dumps({"text": it}) + "\n" for it in TEXT.split("\n"))
    plain, packed = tmp_path / "plain" / name, tmp_path / "packed" / f"{name}{ending}"
    for path in (plain, packed):
        path.parent.mkdir()
    plain.write_text(content)
    half = len(content) // 2  # in two streams, as files are that were put one behind the other
    pack = PACKERS[ending]
    packed.write_bytes(pack(content[:half].encode()) + pack(content[half:].encode()))
    assert digest_of(packed) == digest_of(plain)
    if name != "rows.JSON":
        assert digest_of(packed.parent) == digest_of(plain.parent), "nor does it matter in a folder"


@pytest.mark.parametrize("ending", PACKERS)
def test_what_is_compressed_shows_the_content_and_not_the_name(ending: str, tmp_path: Path) -> None:
    plain, packed = tmp_path / "a" / "text.txt.gz", tmp_path / "b" / "text.txt"
    for path in (plain, packed):
        path.parent.mkdir()
    plain.write_text(TEXT)
    packed.write_bytes(PACKERS[ending](TEXT.encode()))
    assert digest_of(plain) == digest_of(packed)


def test_files_are_ordered_as_if_none_were_compressed(tmp_path: Path) -> None:
    for folder in ("plain", "packed"):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(("a.txt", "a.txt-b.txt", "b.md", "a.md")):
            packed = folder == "packed" and number % 2 == 0
            content = f"document {number}".encode()
            (tmp_path / folder / (f"{name}.xz" if packed else name)).write_bytes(
                lzma.compress(content) if packed else content
            )
    assert digest_of(tmp_path / "plain") == digest_of(tmp_path / "packed")


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "changed", "followed"])
def test_damage_is_a_sentence(ending: str, damage: str, tmp_path: Path) -> None:
    packed = PACKERS[ending](os.urandom(1000).hex().encode())
    middle = len(packed) // 2
    content = {
        "cut": packed[:-20],
        "changed": packed[:middle] + bytes(it ^ 255 for it in packed[middle : middle + 8]) + packed[middle + 8 :],
        "followed": packed + b"what isn't compressed",
    }[damage]
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / f"text.txt{ending}"
    path.write_bytes(content)
    if (ending, damage) in ((".bz2", "followed"), (".zst", "changed")):
        assert digest_of(path), "bzip2 passes it over, too; pyarrow writes no checksum, which the program zstd does"
        return
    with pytest.raises(ConfigError, match=r"text\.txt\..* (can't be unpacked|is not)"):
        digest_of(path)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("ending", PACKERS)
def test_a_bomb_takes_no_memory_and_ends_with_a_sentence(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "UNPACKED_FREE_BYTES", 2 << 20)
    path = tmp_path / f"text.txt{ending}"
    path.write_bytes(PACKERS[ending](b"boom " * (1 << 18)) * 64)
    got = 0
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=r"unpacks to more than 500 times its size"):
            for block in blocks.read_blocks(path, Reading()):
                got += len(block)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # 9 of which xz takes as it is usually packed
    finally:
        tracemalloc.stop()
    assert got < 60 << 20


def test_text_that_packs_well_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode() * 300))
    assert sum(map(len, blocks.read_blocks(path, Reading()))) == 300 * len(TEXT.encode())


def test_an_xz_file_cannot_ask_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "XZ_MEMORY_BYTES", 1 << 20)
    path = tmp_path / "text.txt.xz"
    path.write_bytes(lzma.compress(TEXT.encode(), preset=9))
    with pytest.raises(ConfigError, match="can't be unpacked"):
        list(blocks.read_blocks(path, Reading()))


def test_zeros_between_streams_of_xz_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "text.txt.xz"
    path.write_bytes(lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two") + bytes(4))
    assert b"".join(blocks.read_blocks(path, Reading())) == b"one two"


def test_frames_of_zstandard_without_content_are_passed_over(tmp_path: Path) -> None:
    """As pzstd writes them before each frame, and seekable files have one at their end."""
    path = tmp_path / "text.txt.zst"
    for first in (0x50, 0x5F):
        empty = bytes([first]) + b"\x2a\x4d\x18\x04\0\0\0size"
        path.write_bytes(empty + zstandard(b"one ") + empty + zstandard(b"two") + empty)
        assert b"".join(blocks.read_blocks(path, Reading())) == b"one two"


@pytest.mark.parametrize("ending", ["", *PACKERS])
def test_progress_counts_what_lies_on_the_disk(ending: str, tmp_path: Path) -> None:
    path, reading = tmp_path / "text.txt", Reading()
    path.write_bytes(PACKERS[ending](TEXT.encode()) if ending else TEXT.encode())
    assert b"".join(blocks.read_blocks(path, reading)) == TEXT.encode()
    assert reading.read_bytes == path.stat().st_size


def test_text_that_begins_like_bzip2_is_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"BZh91 is a line")
    assert b"".join(blocks.read_blocks(path, Reading())) == b"BZh91 is a line"
