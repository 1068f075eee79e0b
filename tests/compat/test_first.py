"""The homes in `first/`, written by the first release (commit 849cc63: two stages, killed after step 45, checkpoints of
version 44), still open: the run resumes, and its checkpoints can be cut anew.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from swarmd.config import fingerprint
from swarmd.daemon.home import Home
from swarmd.daemon.store import LocalStore
from swarmd.settings import run_from_plain
from tests.e2e.swarm import run_command, swarm

FIRST = Path(__file__).parent / "first"
STEPS, SAVED = 60, 44


@pytest.fixture
def homes(tmp_path: Path) -> list[Path]:
    copies = []
    for name in ("head", "tail"):
        copies.append(Path(shutil.copytree(FIRST / name, tmp_path / name)))
        (tmp_path / name / "identity.key").chmod(0o600)  # git keeps no modes
    return copies


async def test_its_checkpoints_are_compared_with_those_of_later_releases(homes: list[Path]) -> None:
    """Their manifests have no root: it is worked out, and is the same for the same bytes."""
    saved = [await LocalStore(Home(home)).list_checkpoints() for home in homes]
    roots = {(it.version, it.stage, it.root) for listed in saved for it in listed}
    assert {(version, stage) for version, stage, _ in roots} == {(SAVED, 0), (SAVED, 1)}
    assert len(roots) == 2, "either home has both stages' states"
    assert all(root for _, _, root in roots)


def records(home: Path) -> dict[int, str]:
    return {line["step"]: line["record"] for line in map(json.loads, (home / "ledger.jsonl").read_text().splitlines())}


def test_the_run_keeps_its_name(homes: list[Path]) -> None:
    kept = json.loads((homes[0] / "run.json").read_text())
    assert fingerprint(run_from_plain(kept["run"])) == kept["fingerprint"]


@pytest.mark.timeout(300)
async def test_the_run_goes_on(homes: list[Path]) -> None:
    before = records(homes[0])
    async with swarm() as it:
        head = await it.start("--resume", home=homes[0])
        tail = await it.start("--bootstrap", await head.address(), home=homes[1])
        assert [await daemon.end() for daemon in (head, tail)] == [0, 0]
    for home in homes:
        after = records(home)
        assert sorted(after) == list(range(1, STEPS + 1))
        assert {step: after[step] for step in range(1, SAVED)} == {step: before[step] for step in range(1, SAVED)}


@pytest.mark.timeout(300)
async def test_the_run_is_prolonged(homes: list[Path]) -> None:
    before = records(homes[0])
    async with swarm() as it:
        head = await it.start("--resume", "--steps", "48", home=homes[0])
        tail = await it.start("--bootstrap", await head.address(), home=homes[1])
        assert [await daemon.end() for daemon in (head, tail)] == [0, 0]
    for home in homes:
        after = records(home)
        assert sorted(after) == list(range(1, 49))
        assert {step: after[step] for step in range(1, SAVED)} == {step: before[step] for step in range(1, SAVED)}
        kept = json.loads((home / "run.json").read_text())["run"]
        assert (kept["steps"], kept["earlier"]) == (48, [STEPS])


@pytest.mark.timeout(120)
async def test_its_checkpoints_are_cut_anew(homes: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "in one"
    names = [str(home) for home in homes]
    code, out, error = await run_command("swarmd", "reshape", "--stages", "1", "--home", str(target), *names)
    trouble = [line for line in error.splitlines() if "cutting the checkpoints" not in line]  # said where it takes long
    assert (code, trouble) == (0, [])
    assert f"version {SAVED}" in out
    assert f"`swarmd start --resume --home '{target}'`" in out
    old: dict[str, Tensor] = {}
    for file in FIRST.glob(f"*/checkpoints/*{SAVED}/*.safetensors"):
        old.update(load_file(file))
    (cut,) = target.glob("checkpoints/*/stage-0.safetensors")
    new = load_file(cut)
    assert set(new) == set(old), "the names of the state's tensors are what they were"
    assert all(torch.equal(new[name], old[name]) for name in old)
