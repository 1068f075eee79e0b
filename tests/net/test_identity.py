"""The key file: made once, private, and damaged ones are told from others."""

import stat
from pathlib import Path

import pytest

from swarmd.errors import ConfigError
from swarmd.net.identity import load_or_create_seed


def test_it_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "identity.key"
    seed = load_or_create_seed(path)
    assert load_or_create_seed(path) == seed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["identity.key"]
    assert load_or_create_seed(tmp_path / "other.key") != seed


def test_permissions_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    load_or_create_seed(path)
    path.chmod(0o644)
    load_or_create_seed(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["", "cut", "flipped", "binary", "long"])
def test_a_damaged_one_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "identity.key"
    load_or_create_seed(path)
    text = path.read_bytes()
    flipped = text[:20] + (b"0" if text[20:21] != b"0" else b"1") + text[21:]
    path.write_bytes(
        {"": b"", "cut": text[:40], "flipped": flipped, "binary": bytes(range(256)), "long": text * 999}[damage]
    )
    with pytest.raises(ConfigError, match="is damaged; restore it, or remove it"):
        load_or_create_seed(path)
    assert path.exists()


def test_one_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another --home"):
        load_or_create_seed(tmp_path / "file" / "identity.key")
