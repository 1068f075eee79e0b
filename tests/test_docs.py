"""The documents say what is there: every file, name, command, option and link that they mention exists.

A document's own files stand in the repository, `path.py:Class.method` in the source. A name that is only in backticks
must at least be somewhere in the source.
"""

import ast
import functools
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from swarmd.settings import load_run
from swarmd.sim.campaign.checks import PROMISES
from tests.house import ROOT, parse, sources

DOCUMENTS = sorted(path for pattern in ("*.md", "docs/*.md", "examples/**/*.md") for path in ROOT.glob(pattern))
HISTORY = ROOT / "CHANGELOG.md"  # it names what was, too
ROOMS = ("", "swarmd/")  # where a path in a document may begin
PLACES = ("swarmd", "swarmctl", "tests", "benchmarks", "configs", "docs", "examples")

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", read(document), flags=re.DOTALL | re.MULTILINE)


def quoted(document: Path) -> list[str]:
    """The words in backticks, line breaks within them as spaces."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(document))]


def blocks(document: Path) -> Iterator[str]:
    """The lines in blocks of code, those that go on in the next line joined."""
    for block in re.findall(r"^```\n(.*?)^```", read(document), flags=re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()


# ------------------------------------------------------------------------------------------------- links


def slugs(document: Path) -> set[str]:
    """The anchors of a document's headings, as web sites make them."""
    headings = re.findall(r"^#+ (.*)$", read(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (document.parent / name).resolve() if name else document
        assert linked.exists(), target
        assert not anchor or anchor in slugs(linked), target


# ------------------------------------------------------------------------------------------------- files and names


def find_file(mention: str) -> Path | None:
    return next((path for room in ROOMS if (path := ROOT / room / mention).exists()), None)


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """The names that a file defines: `function`, `Class`, `Class.method`, `Class.field`, `CONSTANT`."""
    found = set()
    for node in parse(path).body:
        found |= set(defined(node))
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                found |= {f"{node.name}.{name}" for name in defined(member)}
            for each in ast.walk(node):
                if (
                    isinstance(each, ast.Attribute)
                    and isinstance(each.ctx, ast.Store)
                    and ast.unparse(each.value) == "self"
                ):
                    found.add(f"{node.name}.{each.attr}")
    return frozenset(found)


def defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


@functools.cache
def all_names() -> frozenset[str]:
    return frozenset().union(*(names_in(path) for path in sources("swarmd", "swarmctl", "benchmarks", "tests")))


@functools.cache
def words() -> frozenset[str]:
    """Every word of the source and of the files that come with it."""
    files = [*sources("swarmd", "swarmctl", "benchmarks", "tests"), *ROOT.glob("configs/**/*"), ROOT / "Makefile"]
    ours = (path for path in files if path.is_file() and path.suffix != ".pyc" and path != Path(__file__))
    texts = (path.read_text(encoding="utf-8") for path in ours)
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


def wrong_mentions(mentions: list[str]) -> list[str]:
    """Mentions of files and names that are not there."""
    return [mention for mention in mentions if not is_there(mention)]


def is_there(mention: str) -> bool:
    if match := re.fullmatch(r"([\w./-]+\.py)(?::([\w.]+))?", mention):
        path = find_file(match[1])
        return path is not None and (match[2] is None or match[2] in names_in(path))
    if re.fullmatch(rf"({'|'.join(PLACES)}|swarm|sim|stage|net|daemon)/[\w./-]*", mention):
        return find_file(mention) is not None
    if re.fullmatch(r"[A-Z][a-z]\w*\.\w+", mention):
        return mention in all_names()
    if re.fullmatch(r"\w*[A-Z_]\w*", mention):
        return mention in words()
    return True


@documents
def test_files_and_names_exist(document: Path) -> None:
    if document != HISTORY:
        assert not wrong_mentions(quoted(document))


@pytest.mark.parametrize(
    "mention",
    [
        "swarm/hops/nowhere.py",
        "journey.py",
        "swarm/ports.py:Nothing",
        "swarmd/nowhere/",
        "Record.nothing",
        "NoSuchThing",
    ],
)
def test_the_check_of_names_can_fail(mention: str) -> None:
    assert not is_there(mention)
    assert not wrong_mentions(
        ["swarmd/swarm/ports.py", "swarm/ports.py:Compute.forward", "swarm/hops/", "Record.skips"]
    )


# ------------------------------------------------------------------------------------------------- commands


def options_of(command: Any, arguments: list[str]) -> set[str]:
    """The options of a command, and of the one below it that the arguments name."""
    found = {"--help"}.union(*(parameter.opts for parameter in command.params))
    below = getattr(command, "commands", {})
    return found.union(*(options_of(below[argument], arguments) for argument in arguments if argument in below))


def unknown_options(line: str) -> list[str]:
    """Options in a command of ours that the command doesn't have."""
    program, *arguments = line.split()
    if program == "swarmd":
        from swarmd.cli.main import app
    else:
        from swarmctl.app import app
    known = options_of(typer.main.get_command(app), arguments)
    return [argument for argument in arguments if argument.startswith("-") and argument.split("=")[0] not in known]


def commands(document: Path) -> Iterator[str]:
    for line in (*blocks(document), *quoted(document)):
        for part in re.split(r"[;|] |\$ |sudo |\.venv/bin/", line.split("   #")[0]):
            if re.match(r"(swarmd|swarmctl|python -m|make) [\w-]", part.strip()):
                yield re.sub(r"'[^']*'|\"[^\"]*\"", "TEXT", part.strip())


@documents
def test_commands_have_their_options(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), flags=re.MULTILINE))
    for command in commands(document):
        first, second = command.split()[:2]
        if first in ("swarmd", "swarmctl"):
            assert not unknown_options(command), command
        elif first == "make":
            assert second in targets, command
        else:
            module = command.split()[2]
            if module.split(".")[0] in PLACES:
                assert find_file(module.replace(".", "/")) or find_file(module.replace(".", "/") + ".py"), command


def test_the_check_of_options_can_fail() -> None:
    assert unknown_options("swarmd start --modell tiny") == ["--modell"]
    assert not unknown_options("swarmctl --home DIR status --json")


# ------------------------------------------------------------------------------------------------- and the rest


def test_moved_files_are_where_the_changelog_says() -> None:
    unreleased = read(HISTORY).partition("## [Unreleased]")[2].partition("\n## [")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", unreleased, flags=re.MULTILINE)
    assert rows
    for old, places in rows:
        assert not is_there(old), old
        assert not wrong_mentions(re.findall(r"`([^`]+)`", places)), places


def test_promises_have_one_number_each() -> None:
    """Those that the simulator checks are those of the design, in its words."""
    section = read(ROOT / "docs/design.md").partition("## What must hold")[2].partition("\n## ")[0]
    written = {int(number): text for number, text in re.findall(r"^(\d+)\. (.*)$", section, flags=re.MULTILINE)}
    assert list(written) == list(range(1, len(written) + 1))
    for number, promise in PROMISES.items():
        assert promise.split()[:4] == written[number].lower().split()[:4], number


def test_examples_settings_are_settings() -> None:
    for path in sorted(ROOT.glob("examples/**/*.toml")):
        run = load_run(str(path))
        assert set(tomllib.loads(read(path))) <= set(vars(run))


def test_examples_scripts_are_scripts() -> None:
    scripts = sorted(ROOT.glob("examples/**/*.sh"))
    assert scripts
    for script in scripts:
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    for folder in (path for path in sorted(ROOT.glob("examples/*")) if path.is_dir()):
        assert (folder / "README.md").exists()
        assert (folder / "run.sh").stat().st_mode & 0o111, "make examples runs it"


def test_hooks_are_what_make_lint_does() -> None:
    entries = re.findall(r"entry: (.*)", read(ROOT / ".pre-commit-config.yaml"))
    recipe = read(ROOT / "Makefile").partition("\nlint:")[2].partition("\n\n")[0].splitlines()[1:]
    assert entries == [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe]
