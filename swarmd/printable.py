"""Words from elsewhere (a peer, a file, a library), made fit to be shown: on a terminal, in a pipe, in a log.

Whatever could move a cursor, change colours, reorder or hide letters, or begin another line is shown as its escape,
as Python writes it, and nothing is longer than a bound. Also counts, sizes and times as a person reads them. Relies on
nothing; everything that shows words uses it.
"""

from collections.abc import Mapping

SENTENCE_LIMIT = 2000  # characters; the longest sentence of ours names a dozen addresses
CELL_LIMIT = 120  # characters of a table's cell
LINES_LIMIT = 200  # of a traceback, or of a log's end; the last are kept, which say what happened
CUT = "..."

_LEDGER = {"resent": "sent again", "duplicated": "counted twice"}
"""The words of the ledger's counts; of other counts it is their name."""


def printable(words: object, limit: int = SENTENCE_LIMIT) -> str:
    """The words as one line of at most `limit` characters that a terminal shows and does not obey."""
    text = words if isinstance(words, str) else str(words)
    if len(text) > limit:
        text = text[: limit - len(CUT)] + CUT
    if text.isprintable():  # the usual case; neither controls, line ends, joiners, overrides nor lone surrogates
        return text
    shown = "".join(letter if letter.isprintable() else _escape(letter) for letter in text)
    return shown if len(shown) <= limit else shown[: limit - len(CUT)] + CUT


def printable_lines(words: str, indent: str = "") -> str:
    """Several lines, each printable and indented: no line of them can pass for another record of a log."""
    return "\n".join(indent + printable(line) for line in words.splitlines()[-LINES_LIMIT:])


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things, in words: "1 peer", "1,024 microbatches"."""
    ending = "es" if noun.endswith(("ch", "sh", "s", "x")) else "s"
    return f"{count:,} {noun if count == 1 else plural or noun + ending}"


def ledger_words(counts: Mapping[str, int]) -> str:
    """The microbatches that did not go the usual way, by what became of them."""
    said = [f"{count:,} {_LEDGER.get(name, name.replace('_', ' '))}" for name, count in counts.items()]
    return ", ".join(said) or "nothing unusual"


def size(count: int) -> str:
    """Bytes as a person reads them."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def amount(count: float, noun: str) -> str:
    """A number of things too many to be counted one by one: "12,288 tokens", "1.20 million parameters"."""
    for unit, value in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if count >= value:
            return f"{count / value:,.2f} {unit} {noun}s"
    return counted(round(count), noun)


def share(part: float) -> str:
    """A fraction in percent. A little is not nothing, and almost all is not all."""
    if 0 < part < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= part < 1 else f"{part:.0%}"


def money(price: float) -> str:
    """A price, without its currency."""
    if 0 < price < 0.01:
        return "under 0.01"
    return f"{price:,.0f}" if price >= 1000 or not price else f"{price:,.2f}"


def span(seconds: float) -> str:
    """A time that may be short, as a person reads it."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms" if seconds >= 0.001 or not seconds else "under 1 ms"
    return f"{seconds:.1f} s" if seconds < 59.95 else duration(seconds)


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
