"""`make lock`: writes locks/cpu.txt and locks/cuda.txt, the exact packages that pip installs for swarmd, with hashes.

uv resolves `pyproject.toml` for all platforms at once and lists every file of every package; of these the wheels for
our targets stay. Whatever a target lacks a wheel for is refused, but for the two packages that never had one. What is
locked stays as it is while `pyproject.toml` allows it; `--upgrade` takes the newest.

PyPI has no CPU build of torch for Linux, so that one comes from PyTorch's index, or from the directory that
PIP_FIND_LINKS names. Neither stands in the locks.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from packaging.markers import Marker, default_environment
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "locks"
PYTHONS = ((3, 11), (3, 12), (3, 13))
MACHINES = ("x86_64", "aarch64")
GLIBC_MINOR = 28  # glibc 2.28: Debian 10, RHEL 8; torch needs it
EXTRAS = ("bnb", "data")  # what users need
NO_WHEEL = ("python-baseconv", "varint")  # pure Python; their authors published sources only
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

HEAD = """\
# Made by `make lock` from pyproject.toml, for pip on Linux: {pythons}; {machines}; glibc 2.{glibc}.
#   pip install --no-deps --require-hashes -r THIS && pip install --no-deps --no-build-isolation PLACE
# PLACE is a checkout or git+URL@TAG of swarmd. Nothing is compiled: all are wheels but {sources},
# which are pure Python.
{more}"""
CPU_MORE = f"""\
# torch is PyTorch's build without CUDA, which PyPI doesn't have: `--extra-index-url {CPU_INDEX}`.
"""
CUDA_MORE = """\
# torch is PyPI's build, with NVIDIA's CUDA libraries. This list was resolved, with each file's hash from the index;
# as a whole it was not installed.
"""


class Target(NamedTuple):
    """A machine that the locks are for."""

    python: tuple[int, int]
    machine: str

    def environment(self) -> dict[str, str]:
        """What markers are compared with."""
        version = f"{self.python[0]}.{self.python[1]}"
        plain = {str(name): str(value) for name, value in default_environment().items()}
        return plain | {
            "python_version": version,
            "python_full_version": f"{version}.0",
            "platform_machine": self.machine,
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }

    def tags(self) -> frozenset[Tag]:
        """What wheels may be tagged with."""
        names = [f"manylinux_2_{minor}_{self.machine}" for minor in range(GLIBC_MINOR, 16, -1)]
        names += [f"manylinux2014_{self.machine}", f"linux_{self.machine}"]
        if self.machine == "x86_64":
            names += ["manylinux2010_x86_64", "manylinux1_x86_64"]
            names += [f"manylinux_2_{minor}_x86_64" for minor in range(16, 4, -1)]
        interpreter = f"cp{self.python[0]}{self.python[1]}"
        return frozenset(
            (*cpython_tags(self.python, platforms=names), *compatible_tags(self.python, interpreter, names))
        )


TARGETS = tuple(Target(python, machine) for python in PYTHONS for machine in MACHINES)


class Locked(NamedTuple):
    """One package of a lock."""

    name: str
    version: str
    marker: str  # "": wherever the lock is used
    hashes: frozenset[str]

    def lines(self) -> str:
        """This package as pip reads it."""
        where = f" ; {self.marker}" if self.marker else ""
        return " \\\n    ".join(
            [f"{self.name}=={self.version}{where}", *(f"--hash=sha256:{it}" for it in sorted(self.hashes))]
        )


def parse(text: str) -> list[Locked]:
    """The packages of a lock's text."""
    found = []
    joined = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in joined.splitlines():
        if not (words := line.strip()):
            continue
        pinned, *_ = words.split(" --hash=")
        match = re.fullmatch(r"([\w.-]+)==([^\s;]+)(?: *; *(.*))?", pinned.strip())
        assert match, f"not a pinned package: {line}"
        found.append(Locked(match[1], match[2], match[3] or "", frozenset(re.findall(r"--hash=sha256:(\w+)", words))))
    return found


def kept_files(package: dict[str, Any], targets: Iterable[Target], known: frozenset[str]) -> frozenset[str]:
    """Hashes of the files that the targets may install. Each needs a wheel, of which the hash may be known already."""
    wheels = [(_file_name(it), it["hashes"]["sha256"]) for it in package.get("wheels", ())]
    if not wheels and package["name"] in NO_WHEEL:
        return frozenset({package["sdist"]["hashes"]["sha256"]})
    kept = set(known)
    for target in targets:
        tags = target.tags()
        fitting = {hash_ for name, hash_ in wheels if parse_wheel_filename(name)[3] & tags}
        if not fitting and len(known) < len(TARGETS):
            raise SystemExit(f"{package['name']} {package['version']} has no wheel for {target}")
        kept |= fitting
    return frozenset(kept)


def _file_name(wheel: dict[str, Any]) -> str:
    return unquote(str(wheel.get("name") or wheel.get("url") or wheel["path"]).rsplit("/", 1)[-1])


def needed(packages: Iterable[dict[str, Any]], torch: frozenset[str] = frozenset()) -> Iterator[Locked]:
    """The packages that some target needs, with their wheels. `torch`: known hashes of its wheels that the index at
    hand may not list.
    """
    for package in packages:
        marker = package.get("marker", "")
        targets = [it for it in TARGETS if not marker or Marker(marker).evaluate(it.environment())]
        if not targets:
            continue
        hashes = kept_files(package, targets, torch if package["name"] == "torch" else frozenset())
        yield Locked(package["name"], package["version"], "" if len(targets) == len(TARGETS) else marker, hashes)


def resolve(wanted: Iterable[str], kept: Path, options: list[str]) -> list[dict[str, Any]]:
    """What uv makes of `pyproject.toml` and more: the packages, with all their files. Prefers what `kept` has."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "wanted.in").write_text("\n".join(wanted), encoding="utf-8")
        pinned, listed = folder / "pinned.txt", folder / "pylock.toml"
        if kept.exists():
            pinned.write_bytes(kept.read_bytes())
        uv = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--universal"]
        uv += ["--python-version", ".".join(map(str, PYTHONS[0])), "--no-header", "--no-annotate", *options]
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        run = (*uv, *extras, "pyproject.toml", str(folder / "wanted.in"), "--output-file", str(pinned))
        subprocess.run(run, cwd=ROOT, check=True)
        run = (*uv, "--no-deps", "--format", "pylock.toml", str(pinned), "--output-file", str(listed))
        subprocess.run(run, cwd=ROOT, check=True)
        packages: list[dict[str, Any]] = tomllib.loads(listed.read_text(encoding="utf-8"))["packages"]
        return packages


def write(lock: Path, packages: Iterable[Locked], more: str) -> None:
    """Writes a lock."""
    pythons = "Python " + ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    head = HEAD.format(
        pythons=pythons, machines=" and ".join(MACHINES), glibc=GLIBC_MINOR, sources=" and ".join(NO_WHEEL), more=more
    )
    body = "\n".join(it.lines() for it in sorted(packages))
    lock.write_text(f"{head}\n{body}\n", encoding="utf-8")
    print(f"wrote {lock.relative_to(ROOT)}")


def main() -> None:
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    builders = project["build-system"]["requires"]
    cuda = list(needed(resolve(builders, LOCKS / "cuda.txt", upgrade)))
    version = next(it.version for it in cuda if it.name == "torch")
    same = [f"{it.name}=={it.version}{f' ; {it.marker}' if it.marker else ''}" for it in cuda if it.name != "torch"]
    cpu, cpu_torch = LOCKS / "cpu.txt", f"{version}+cpu"
    old = parse(cpu.read_text(encoding="utf-8")) if cpu.exists() else []
    known = [it.hashes for it in old if (it.name, it.version) == ("torch", cpu_torch)]
    links = os.environ.get("PIP_FIND_LINKS")
    source = (
        ["--find-links", links] if links else ["--extra-index-url", CPU_INDEX, "--index-strategy=unsafe-best-match"]
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join([*same, f"torch=={cpu_torch}"]))
        constraints.flush()
        packages = resolve([*builders], Path("/nonexistent"), [*source, "--constraints", constraints.name])
    write(LOCKS / "cuda.txt", cuda, CUDA_MORE)
    write(cpu, needed(packages, frozenset().union(*known)), CPU_MORE)


if __name__ == "__main__":
    main()
