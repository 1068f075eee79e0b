"""The locks hold what `pyproject.toml` asks for, for every target, with hashes, and nothing of their maker's host."""

import copy
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks.make import CPU_INDEX, EXTRAS, LOCKS, NO_WHEEL, ROOT, TARGETS, Locked, Target, kept_files, parse

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAMES = ("cpu", "cuda")
locks = pytest.mark.parametrize("name", NAMES)


def text(name: str) -> str:
    return (LOCKS / f"{name}.txt").read_text(encoding="utf-8")


def pinned(lock: list[Locked], target: Target) -> dict[str, str]:
    """What pip installs from a lock there: versions by name."""
    found: dict[str, str] = {}
    for it in lock:
        if not it.marker or Marker(it.marker).evaluate(target.environment()):
            assert it.name not in found, f"{it.name} twice for {target}"
            found[it.name] = it.version
    return found


def asked(project: dict[str, Any]) -> list[Requirement]:
    """What a project asks for, with the extras that the locks are for, its build back end and its overrides."""
    extras = [line for extra in EXTRAS for line in project["project"]["optional-dependencies"][extra]]
    builders, overrides = project["build-system"]["requires"], project["tool"]["uv"]["override-dependencies"]
    return [Requirement(line) for line in (*project["project"]["dependencies"], *extras, *builders, *overrides)]


def disagreements(project: dict[str, Any], lock: list[Locked]) -> list[str]:
    """Requirements that a lock doesn't meet, on some target."""
    found = []
    for target in TARGETS:
        versions = pinned(lock, target)
        for requirement in asked(project):
            if requirement.marker and not requirement.marker.evaluate(target.environment()):
                continue
            version = versions.get(canonicalize_name(requirement.name))
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{requirement} on {target}: {version}")
    return found


@locks
def test_the_locks_agree_with_the_project(name: str) -> None:
    assert disagreements(PROJECT, parse(text(name))) == [], "run `make lock`"


def test_a_lock_that_disagrees_is_found() -> None:
    lock = parse(text("cpu"))
    for line in ("aiohttp>=99", "a-package-that-nobody-locked"):
        project = copy.deepcopy(PROJECT)
        project["project"]["dependencies"].append(line)
        assert len(disagreements(project, lock)) == len(TARGETS)
    project = copy.deepcopy(PROJECT)
    project["tool"]["uv"]["override-dependencies"] = ["fastecdsa<3"]
    assert disagreements(project, lock)


def test_overrides_have_an_upper_bound() -> None:
    for line in PROJECT["tool"]["uv"]["override-dependencies"]:
        assert any(it.operator in ("<", "<=", "==", "~=") for it in Requirement(line).specifier), line


@locks
def test_each_package_of_a_lock_brings_what_it_needs(name: str) -> None:
    """As far as this environment has the same versions; it is made from the locks."""
    lock, checked = parse(text(name)), 0
    overridden = {Requirement(line).name for line in PROJECT["tool"]["uv"]["override-dependencies"]}
    for target in TARGETS:
        versions = pinned(lock, target)
        for it in metadata.distributions():
            if versions.get(canonicalize_name(it.name)) != it.version:
                continue
            for requirement in map(Requirement, it.requires or ()):
                if requirement.marker and not requirement.marker.evaluate({**target.environment(), "extra": ""}):
                    continue
                checked += 1
                found = versions.get(canonicalize_name(requirement.name), "")
                fits = bool(found) and requirement.specifier.contains(found, prereleases=True)
                assert fits or requirement.name in overridden, f"{it.name} needs {requirement}, locked is {found}"
    assert checked > 100


@locks
def test_a_lock_is_pins_with_hashes_and_names_nothing_of_its_maker(name: str) -> None:
    whole = text(name)
    for it in parse(whole):  # refuses whatever is no pin
        assert it.hashes, it.name
    assert not re.search(r"^\s*-(?!-hash=)", whole, flags=re.MULTILINE), "options belong to the command line"
    assert set(re.findall(r"\w+://[^\s`]+", whole)) <= {CPU_INDEX}
    assert not re.search(r"(?<![\w.+/])/\w", whole), "no path"


def test_the_locks_differ_in_torch_alone() -> None:
    cpu, cuda = (parse(text(name)) for name in NAMES)
    for target in TARGETS:
        one, other = pinned(cpu, target), pinned(cuda, target)
        assert one.pop("torch") == f"{other.pop('torch')}+cpu"
        assert one.items() <= other.items()
        assert all(re.match(r"nvidia-|cuda-|triton$", name) for name in other.keys() - one.keys())
        assert any(name.startswith("nvidia-") for name in other)
    for lock in (cpu, cuda):
        (torch,) = (it for it in lock if it.name == "torch")
        assert len(torch.hashes) >= len(TARGETS), "a wheel for each target"


def wheel(name: str) -> dict[str, Any]:
    return {"url": f"https://example.org/{name}", "hashes": {"sha256": name}}


def test_only_wheels_of_the_targets_are_kept_and_each_target_needs_one() -> None:
    intel = ["pkg-1-cp311-abi3-manylinux_2_17_x86_64.whl", "pkg-1-cp311-cp311-manylinux2014_x86_64.whl"]
    foreign = [
        "pkg-1-cp311-cp311-win_amd64.whl",
        "pkg-1-cp313-cp313t-manylinux_2_17_x86_64.whl",
        "pkg-1-cp311-cp311-musllinux_1_2_x86_64.whl",
        "pkg-1-cp312-cp312-manylinux_2_34_x86_64.whl",
    ]
    package = {"name": "pkg", "version": "1", "wheels": [wheel(it) for it in (*intel, *foreign)]}
    machines = [it for it in TARGETS if it.machine == "x86_64"]
    assert kept_files(package, machines, frozenset()) == set(intel)
    with pytest.raises(SystemExit, match=r"no wheel for .*aarch64"):
        kept_files(package, TARGETS, frozenset())
    with pytest.raises(SystemExit, match="no wheel"):
        kept_files({"name": "pkg", "version": "1", "sdist": wheel("pkg-1.tar.gz")}, TARGETS, frozenset())
    source = {"name": NO_WHEEL[0], "version": "1", "sdist": wheel("source.tar.gz")}
    assert kept_files(source, TARGETS, frozenset()) == {"source.tar.gz"}


def test_the_lists_of_files_that_messages_and_pages_install_are_published() -> None:
    """swarmd is not on PyPI: nothing may tell a person to fetch it, or an extra of it, from there."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md"), *ROOT.glob("Dockerfile")]
    for path in (*pages, *ROOT.glob("swarmd/**/*.py"), *ROOT.glob("swarmctl/**/*.py")):
        assert not installs_ours(path), path


def installs_ours(path: Path) -> list[str]:
    """Lines that install a package of our name from an index."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [
        it
        for it in lines
        if re.search(r"(pip|pipx|uv tool) install\b.*\bswarmd(\[[\w,]*\])?(?! *(\[[\w,]*\])? *@)", it)
    ]
    return [it for it in found if "PLACE" not in it and "runpip" not in it]


def test_a_line_that_installs_ours_from_an_index_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for line, found in (
        ("run pip install 'swarmd[data]'.", True),
        ("pip install swarmd", True),
        ("uv tool install --overrides LOCK 'swarmd[bnb,data] @ PLACE'", False),
        ("pip install tokenizers", False),
    ):
        page.write_text(line)
        assert bool(installs_ours(page)) == found, line
