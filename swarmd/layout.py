"""Layouts that fit any width without cutting a word: tables that leave columns out, facts with labels, sentences.

Relies on rich for colours and for the width of letters; knows nothing of what is shown. A word that is longer than a
line, as an address can be, stays whole: the terminal wraps it, and it can be copied. So what is printed must not be
cropped (`crop=False`); where a line may not be longer than the terminal, `Folded` wraps it as the terminal would.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from swarmd.printable import counted

GAP = 2  # spaces between columns
SENTENCE_COLUMNS = 24  # the least for a column whose sentences may take several lines


@dataclass(frozen=True)
class Column:
    """A column of a table. Of those that don't fit, the ones with the highest `rank` are left out first; those of rank
    0 never are.
    """

    name: str
    rank: int = 0
    right: bool = True  # numbers; words stand at the left
    wraps: bool = False  # its cells are sentences, which may take several lines


class FittedTable:
    """A table of the columns that the width has room for, with a line that names the others."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[Text]], more: str, title: str = "") -> None:
        """`more` says how to see the columns that are left out, as in "--wide shows them"."""
        assert all(len(row) == len(columns) for row in rows)
        self._columns, self._rows, self._more, self._title = columns, rows, more, title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._title:
            title = wrapped(self._title, options.max_width)
            yield from _printed(console, (Text(line, style="italic") for line in title))
        shown = fitting(self._columns, [self._needs(number) for number in range(len(self._columns))], options.max_width)
        yield from _printed(console, self._lines(shown, options.max_width))
        if out := [column.name for number, column in enumerate(self._columns) if number not in shown]:
            left = f"{counted(len(out), 'column')} left out ({', '.join(out)}): {self._more}"
            yield from _printed(console, (Text(line, style="dim") for line in wrapped(left, options.max_width)))

    def _needs(self, number: int) -> int:
        """The least width of a column."""
        if not self._columns[number].wraps:
            return self._natural(number)
        return max(self._longest(number), min(SENTENCE_COLUMNS, self._natural(number)))

    def _longest(self, number: int) -> int:
        """The width of a column's longest word, its name included."""
        words = (word for row in self._rows for word in row[number].plain.split())
        return max(map(cell_len, (self._columns[number].name, *words)))

    def _natural(self, number: int) -> int:
        """The width of a column with each cell in one line."""
        cells = (row[number].plain for row in self._rows)
        return max(map(cell_len, (self._columns[number].name, *cells)))

    def _lines(self, shown: Sequence[int], width: int) -> Iterator[Text]:
        widths = {number: self._needs(number) for number in shown}
        spare = width - sum(widths.values()) - GAP * (len(shown) - 1)  # less than 0: sentences must do with less
        for number in shown:
            if self._columns[number].wraps:
                more = min(max(spare, self._longest(number) - widths[number]), self._natural(number) - widths[number])
                widths[number], spare = widths[number] + more, spare - more
        header = [Text(column.name, style="bold") for column in self._columns]
        for row in (header, *self._rows):
            yield from self._row([row[number] for number in shown], shown, widths)

    def _row(self, cells: Sequence[Text], shown: Sequence[int], widths: dict[int, int]) -> Iterator[Text]:
        parts = [
            [Text(line, style=cell.style) for line in wrapped(cell.plain, widths[number])]
            if self._columns[number].wraps
            else [cell]
            for number, cell in zip(shown, cells, strict=True)
        ]
        for at in range(max(map(len, parts))):
            line = Text()
            for number, part in zip(shown, parts, strict=True):
                cell = part[at] if at < len(part) else Text()
                line.append(" " * GAP if number != shown[0] else "")
                room = " " * (widths[number] - cell.cell_len)
                line = line + Text(room) + cell if self._columns[number].right else line + cell + Text(room)
            line.rstrip()
            yield line


def fitting(columns: Sequence[Column], needs: Sequence[int], width: int) -> list[int]:
    """The numbers of the columns that are shown."""
    shown = list(range(len(columns)))
    for number in sorted(shown, key=lambda number: (columns[number].rank, number), reverse=True):
        if sum(needs[it] for it in shown) + GAP * (len(shown) - 1) <= width or not columns[number].rank:
            break
        shown.remove(number)
    return shown


class Facts:
    """Values with their labels, one below the other."""

    def __init__(self, facts: Sequence[tuple[str, Text]]) -> None:
        self._facts = facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        labels = max((cell_len(label) for label, _ in self._facts), default=0) + GAP
        for label, value in self._facts:
            for number, line in enumerate(wrapped(value.plain, options.max_width - labels)):
                head = Text((label if number == 0 else "").ljust(labels), style="bold")
                yield from _printed(console, [head + Text(line, style=value.style)])


class Sentence:
    """Words in as many lines as they need."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = wrapped(self._text.plain, options.max_width)
        yield from _printed(console, (Text(line, style=self._text.style) for line in lines))


class Folded:
    """Something whose lines may be too long, wrapped as a terminal does: for what is renewed in place."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        for line in Segment.split_lines(console.render(self._inner, options)):
            total = sum(segment.cell_length for segment in line)
            cuts = [*range(width, total, width), total]
            for part in Segment.divide(line, cuts) if total else [[]]:
                yield from part
                yield Segment.line()


def wrapped(words: str, width: int) -> list[str]:
    """The words in lines of at most so many columns; a longer word has a line of its own."""
    lines: list[str] = []
    for word in words.split(" "):
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _printed(console: Console, lines: Iterable[Text]) -> Iterator[Segment]:
    for line in lines:
        yield from line.render(console)
        yield Segment.line()
