"""Layouts of any width: which columns go, where sentences and long lines are wrapped."""

import itertools

from rich.table import Table
from rich.text import Text

from swarmd.layout import GAP, Column, Facts, FittedTable, Folded, fitting, wrapped
from swarmd.screen import UNBOUNDED
from tests.daemon.fakes import ADDRESS
from tests.house import sources
from tests.widths import cut_words, drawn

TALE = "nothing is full: stage 30, compute is 32% in use, the rest is latency and uneven turns"


def test_the_check_of_cut_words_can_fail() -> None:
    table = Table("state", "device")
    table.add_row("serving", "NVIDIA_A100-SXM4-80GB")
    assert cut_words(drawn(table, 20), drawn(table, 100))


def test_a_column_goes_only_when_it_must_and_the_least_important_first() -> None:
    columns = (Column("a"), Column("b", 2), Column("c", 3), Column("d", 1))
    for needs in itertools.product((1, 5, 9), repeat=4):
        for width in range(1, 45):
            shown = fitting(columns, needs, width)
            assert 0 in shown
            out = [number for number in range(4) if number not in shown]
            assert all(columns[it].rank > columns[there].rank for it in out for there in shown)
            if shown != [0]:
                assert sum(needs[it] for it in shown) + GAP * (len(shown) - 1) <= width
            if out:
                back = min(out, key=lambda it: columns[it].rank)
                assert sum(needs[it] for it in (*shown, back)) + GAP * len(shown) > width


def test_sentences_in_cells_take_several_lines() -> None:
    table = FittedTable((Column("n"), Column("why", 1, wraps=True, right=False)), [(Text("1"), Text(TALE))], "")
    lines = drawn(table, 40).splitlines()
    assert len(lines) > 3
    assert " ".join(" ".join(lines[1:]).split()) == f"1 {TALE}"
    assert drawn(table, UNBOUNDED).splitlines()[1] == f"1  {TALE}"


def test_sentences_do_with_less_where_the_other_columns_need_the_room() -> None:
    columns = (Column("why", wraps=True, right=False), Column("figures"))
    text = drawn(FittedTable(columns, [(Text(TALE), Text("1" * 20))], ""), 34)
    assert all(len(line) <= 34 for line in text.splitlines())
    assert not cut_words(text, drawn(FittedTable(columns, [(Text(TALE), Text("1" * 20))], ""), UNBOUNDED))


def test_a_long_title_takes_several_lines() -> None:
    lines = drawn(FittedTable((Column("n"),), [(Text("1"),)], "", TALE), 40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert " ".join(lines[:-2]) == TALE


def test_a_line_that_is_renewed_is_wrapped_as_a_terminal_would() -> None:
    facts = Facts([("address", Text(ADDRESS))])
    whole = drawn(facts, 40).rstrip("\n")
    assert len(whole) > 40
    folded = drawn(Folded(facts), 40).splitlines()
    assert folded == [whole[at : at + 40] for at in range(0, len(whole), 40)]


def test_wide_letters_take_two_columns() -> None:
    assert wrapped("語語 語語", 4) == ["語語", "語語"]
    table = FittedTable(
        (Column("a", right=False), Column("b")), [(Text("語語"), Text("1")), (Text("x"), Text("2"))], ""
    )
    assert drawn(table, 40).splitlines() == ["a     b", "語語  1", "x     2"]


def test_no_other_kind_of_table_is_made() -> None:
    """A table of rich's cuts words by itself."""
    for path in sources("swarmctl", "swarmd", "benchmarks"):
        assert "rich.table" not in path.read_text(encoding="utf-8"), path
