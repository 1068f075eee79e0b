"""The package builds without the network from what the container file copies, and the container file names what exists.

What needs the network, pip with the locks, is `make try-install`.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.house import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, flags=re.MULTILINE)


def copied() -> list[tuple[list[str], str]]:
    """What the container file copies from the checkout: sources, and where to."""
    found = [line.split() for line in instructions("COPY") if not line.startswith("--from")]
    return [(words[:-1], words[-1]) for words in found]


def test_the_container_file_copies_what_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    for lock in ("cpu", "cuda"):
        for sources, _ in copied():
            for source in sources:
                name = source.replace("${LOCK}", lock)
                assert (ROOT / name).exists(), name
                assert name.split("/")[0] in let_through, name


def test_the_container_starts_a_program_of_ours_as_a_user_without_rights() -> None:
    (entry,) = instructions("ENTRYPOINT")
    (user,) = instructions("USER")
    (home,) = instructions("VOLUME")
    assert json.loads(entry)[0] in PROJECT["project"]["scripts"]
    assert user != "root"
    assert f"--home-dir {home} " in DOCKERFILE
    assert f"SWARMD_HOME={home}" in DOCKERFILE
    (python,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert python in {"3.11", "3.12", "3.13"}, "the locks have wheels for it"
    for line in re.findall(r"pip install .*", DOCKERFILE):
        assert "--no-deps" in line
        assert "--require-hashes" in line or "--no-build-isolation" in line


@pytest.mark.slow
def test_the_package_builds_from_what_the_container_file_copies(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for names, place in copied():
        if not place.startswith("/src/"):
            continue
        for name in names:
            to = source / place.removeprefix("/src/") / ("" if (ROOT / name).is_dir() else name)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, to)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", tmp_path / "out", source], check=True, cwd=tmp_path, capture_output=True)
    (wheel,) = (tmp_path / "out").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        scripts = next(archive.read(name).decode() for name in held if name.endswith("entry_points.txt"))
    ours = [path for place in ("swarmd", "swarmctl", "configs") for path in (ROOT / place).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in ours if "__pycache__" not in path.parts}
    assert wanted <= held
    for name, target in PROJECT["project"]["scripts"].items():
        assert f"{name} = {target}" in scripts
