"""What is text is read; what isn't is recognised whatever it is called, and refused in a sentence."""

import codecs
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from swarmd.errors import ConfigError
from swarmd.text import blocks
from swarmd.text.reading import Reading
from swarmd.text.sources import list_files, read_files

UMLAUTS = "größere Straßen überall, schöne Häuser\n" * 50


def text_of(path: Path, reading: Reading | None = None) -> str:
    return "".join(piece.text for piece in read_files(list_files(str(path)), "text", reading))


def _zip() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a.txt", "text")
    return made.getvalue()


def _tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
    return made.getvalue()


NO_TEXT = {
    "random": (os.urandom(5000), "is not"),
    "a NUL": (b"text " * 1000 + b"\0", "bytes that are zero"),
    "zip": (_zip(), "a zip archive"),
    "tar": (_tar(), "a tar archive"),
    "tar.gz": (gzip.compress(_tar()), "a tar archive"),
    "pdf": (b"%PDF-1.7\n%text", "a PDF"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(20), "bytes that are zero"),
    "UTF-16": (UMLAUTS.encode("utf-16"), "iconv -f UTF-16"),
    "UTF-16, most significant byte first": (codecs.BOM_UTF16_BE + UMLAUTS.encode("utf-16-be"), "iconv -f UTF-16"),
    "UTF-32": (UMLAUTS.encode("utf-32"), "iconv -f UTF-32"),
    "UTF-32, most significant byte first": (codecs.BOM_UTF32_BE + UMLAUTS.encode("utf-32-be"), "iconv -f UTF-32"),
    "Latin-1": (UMLAUTS.encode("latin-1"), "iconv -f LATIN1"),
    "twice": (gzip.compress(gzip.compress(b"text")), "compressed twice"),
    "rar": (b"Rar!\x1a\x07\x01\0", "a RAR archive"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7\x04\0\0\x80text", "compressed with lz4"),
    "lzma": (lzma.compress(b"text", lzma.FORMAT_ALONE), "compressed with lzma"),
    "compress": (b"\x1f\x9d\x90text", "compressed with compress"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
    "git-annex": (b"/annex/objects/SHA256E-s12--4d7a.txt\n", "git annex get"),
}


@pytest.mark.parametrize("ending", ["txt", "md", "", "gz", "jsonl", "json"])
@pytest.mark.parametrize("kind", NO_TEXT)
def test_what_is_no_text_is_refused_whatever_it_is_called(kind: str, ending: str, tmp_path: Path) -> None:
    content, complaint = NO_TEXT[kind]
    path = tmp_path / f"data.{ending}"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        text_of(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if not ending.startswith("json") or kind.lower().startswith("git"):
        assert complaint in str(caught.value)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 20])
def test_no_letter_is_torn(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PIECE_BYTES", size)
    text = "aé字🦊\r\n" * 20
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert text_of(tmp_path / "a.txt") == text


@pytest.mark.parametrize("size", [7, 1 << 20])
def test_a_few_bytes_that_are_not_utf_8_are_replaced_and_said(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PIECE_BYTES", size)
    reading, good = Reading(), "é plain \ufffd letters\n" * 100
    (tmp_path / "a.txt").write_bytes(good.encode() + b"one \xe9 two \xff\n" + good.encode() + b"\xc3")
    assert text_of(tmp_path / "a.txt", reading) == f"{good}one \ufffd two \ufffd\n{good}\ufffd"
    assert reading.remarks == [f"3 places in {tmp_path / 'a.txt'} aren't UTF-8; each became \ufffd"]


def test_the_mark_before_utf_8_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "é".encode())
    assert text_of(tmp_path / "a.txt") == "é"


def test_a_json_file_is_rows_or_is_told_how_it_becomes_some(tmp_path: Path) -> None:
    path = tmp_path / "my rows.json"
    path.write_text('\ufeff{"text": "a"}\n{"text": "b"}\n')
    assert text_of(path) == "ab"
    for content in ('[{"text": "a"}]', '{\n  "text": "a"\n}', '"a"', "3", "", "no JSON"):
        path.write_text(content)
        with pytest.raises(
            ConfigError, match=r"has no row in each line; make rows of it, as with jq -c '\.\[\]' '.*my rows\.json' >"
        ):
            text_of(path)
