"""The files of a folder and of a glob: none is left out in silence, and none is there twice."""

import errno
import glob
import os
import random
from pathlib import Path

import pytest

from swarmd.errors import ConfigError
from swarmd.text.folders import files_below, matching_files
from swarmd.text.sources import list_files

NAMES = ("a", "b.txt", ".h", "c.txt", "[x]", "d")
PARTS = ("*", "**", "*.txt", "a", ".h", "[ab]*", ".*", "?", "b.txt", "**x")


def names_of(source: Path | str) -> list[str]:
    return [name for name, _ in list_files(str(source))]


def grow(root: Path, rng: random.Random) -> None:
    """Files and folders with names that look alike."""
    folders = [root]
    for _ in range(rng.randrange(14)):
        path = rng.choice(folders) / rng.choice(NAMES)
        if path.exists():
            continue
        if rng.random() < 0.5:
            path.mkdir()
            folders.append(path)
        else:
            path.touch()


def as_glob_finds(pattern: Path) -> set[Path]:
    """By Python's own, where no folder has a name with brackets."""
    return {Path(name) for name in glob.glob(str(pattern), recursive=True) if Path(name).is_file()}


@pytest.mark.parametrize("seed", range(40))
def test_without_links_they_are_those_of_pathlib_and_glob(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    grow(tmp_path, rng)
    assert sorted(files_below(tmp_path)) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for _ in range(20):
        parts = [rng.choice(PARTS) for _ in range(rng.randrange(1, 4))]
        found = matching_files(tmp_path.joinpath(*parts))
        assert len({*found}) == len(found), parts
        if not (tmp_path.joinpath(*parts[:-1]).is_file() and parts[-1] == "**"):  # a file that is a folder of itself
            assert {*found} == as_glob_finds(tmp_path.joinpath(*parts)), parts


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links to another one, to itself, and to nothing."""
    for name in ("corpus/sub", "other/deep"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("corpus/a.txt", "corpus/sub/b.txt", "other/c.txt", "other/deep/d.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "corpus/more").symlink_to(tmp_path / "other")
    (tmp_path / "corpus/sub/up").symlink_to("..")
    (tmp_path / "other/back").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus/gone.txt").symlink_to("nowhere")
    (tmp_path / "corpus/itself.txt").symlink_to("itself.txt")
    return tmp_path / "corpus"


def test_a_link_to_a_folder_is_that_folder(linked: Path) -> None:
    names = ["a.txt", "more/c.txt", "more/deep/d.txt", "sub/b.txt"]
    assert names_of(linked) == names
    assert names_of(f"{linked}/**/*.txt") == names_of(f"{linked}/**/**/*.txt") == [f"{linked}/{it}" for it in names]
    assert names_of(f"{linked}/*/*.txt") == [f"{linked}/{it}" for it in ("more/c.txt", "sub/b.txt")]
    assert names_of(f"{linked}/sub/up") == names_of(linked / "sub/up/sub/..") == names, "also under another name"
    assert names_of(f"{linked}/sub/up/**/*.txt") == [f"{linked}/sub/up/{it}" for it in names]
    assert names_of(f"{linked}/more/**/*.txt") == [
        f"{linked}/more/{it}" for it in ("back/a.txt", "back/sub/b.txt", "c.txt", "deep/d.txt")
    ]


@pytest.mark.parametrize("source", ["", "/**/*.txt", "/*/*.txt"])
def test_a_folder_that_cannot_be_read_is_said(source: str, linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of another user. Whoever tests as root may read everything."""
    read = os.listdir

    def refuse(folder: Path) -> list[str]:
        if folder.name == "sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return read(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ConfigError, match=rf"^{linked}/sub can't be read \(Permission denied\); check --data\.$"):
        list_files(f"{linked}{source}")


def test_what_a_disk_has_for_its_file_system_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    for name in ("a.txt", "lost+found/b.txt"):
        (tmp_path / name).touch()
    assert names_of(tmp_path) == ["a.txt"]
