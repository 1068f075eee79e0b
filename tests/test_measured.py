"""Figures are of the present code, or say of which date and commit they are: the rule of `tests/measured.py`."""

import dataclasses
import datetime
import subprocess
from pathlib import Path

import pytest

from tests import measured
from tests.house import ROOT
from tests.measured import AGE_DAYS, FRESH_SHARE, Figure, has_figures, is_ancestor, is_marked, places, tables, trouble

FIGURES = measured.read_list()
DOCUMENTS = sorted({ROOT / "README.md", *ROOT.glob("docs/*.md")})

figures = pytest.mark.parametrize("figure", FIGURES, ids=lambda it: it.words)


def text_of(figure: Figure) -> str:
    return (ROOT / figure.document).read_text(encoding="utf-8")


@figures
def test_an_entry_is_of_something_that_is_there(figure: Figure) -> None:
    """Also where no history is."""
    assert places(figure, text_of(figure)), figure.words
    assert figure.paths
    for path in figure.paths:
        assert (ROOT / path).exists(), path


@figures
def test_a_figure_is_of_the_present_code_or_says_of_which(figure: Figure) -> None:
    if why := measured.why_no_history():
        pytest.skip(why)
    assert is_ancestor(figure.commit), f"{figure.commit} is no commit of this history"
    assert not trouble(figure, text_of(figure), measured.changed_share(figure), measured.today())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_table_of_figures_is_in_the_list(document: Path) -> None:
    name, text = str(document.relative_to(ROOT)), document.read_text(encoding="utf-8")
    known = [figure for figure in FIGURES if figure.document == name]
    for before, rows in tables(text):
        if has_figures(rows):
            assert any(figure.words in before or figure.words in " ".join(rows) for figure in known), before


def test_every_row_of_the_readme_that_has_a_command_is_in_the_list() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Measured")[2]
    rows = [row for row in text.splitlines() if row.startswith("| ") and row.count("|") == 5][1:]
    rows = [row for row in rows if "| `pytest " not in row]  # a test says it anew each time
    assert rows
    known = [figure.words for figure in FIGURES if figure.document == "README.md"]
    assert not [row for row in rows if not any(words in row for words in known)]


OLD = Figure("README.md", "from start", "make x", datetime.date(2026, 1, 1), "1234567", ("swarmd",))
SOON = OLD.date + datetime.timedelta(days=1)


def test_the_rule_can_fail() -> None:
    row, marked = "a\n\n| from start | 3 s |\n", "a\n\n| from start | 3 s | 2026-01-01, 1234567 |\n"
    assert trouble(OLD, row, FRESH_SHARE, SOON) == ""
    assert 'write "2026-01-01, 1234567" beside it' in trouble(OLD, row, FRESH_SHARE + 0.01, SOON)
    assert trouble(OLD, marked, 5.0, SOON) == ""
    assert "measure it again" in trouble(OLD, marked, 0.0, OLD.date + datetime.timedelta(days=AGE_DAYS + 1))
    assert "doesn't say" in trouble(OLD, "nothing", 0.0, SOON)
    assert not is_marked(OLD, f"{row}\n2026-01-01, 1234567"), "a mark elsewhere is none"
    assert not is_ancestor("0" * 40)


def test_changes_are_counted_where_files_are_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        made = ("-c", "user.name=x", "-c", "user.email=x@x.invalid", "-c", "commit.gpgsign=false", "-C", str(tmp_path))
        return subprocess.run(["git", *made, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def commit() -> str:
        git("add", "-A")
        git("commit", "-qm", "x")
        return git("rev-parse", "--short", "HEAD")

    monkeypatch.setattr(measured, "ROOT", tmp_path)
    git("init", "-q")
    (tmp_path / "old.py").write_text("".join(f"line {number}\n" for number in range(100)))
    (tmp_path / "other.py").write_text("x\n")
    first = commit()
    (tmp_path / "room").mkdir()
    (tmp_path / "old.py").rename(tmp_path / "room" / "new.py")
    commit()
    moved = dataclasses.replace(OLD, commit=first, paths=("room",))
    measured.changes.cache_clear()
    assert measured.changed_share(moved) == 0.0
    text = (tmp_path / "room" / "new.py").read_text().replace("line 7\n", "other\n")
    (tmp_path / "room" / "new.py").write_text(text)
    (tmp_path / "other.py").write_text("much\n" * 500)
    commit()
    measured.changes.cache_clear()
    assert measured.changed_share(moved) == pytest.approx(2 / 100)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--depth", "1", tmp_path.as_uri(), str(clone)], check=True)
    monkeypatch.setattr(measured, "ROOT", clone)
    assert "shallow" in measured.why_no_history()
    monkeypatch.setattr(measured, "ROOT", tmp_path.parent)
    measured.changes.cache_clear()


def test_tables_of_figures_are_told_from_others() -> None:
    ours = ["| a | b | c |", "|---|---|---|", "| x | 3 s | 4 % |"]
    assert has_figures(ours)
    assert not has_figures(["| a | b | source |", *ours[1:]]), "somebody else's"
    assert not has_figures([*ours[:2], "| x | words | and 1 more |"])
