"""Pieces of text as readers give them, and the progress that they tell. Knows no files, no tokens and no run."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Piece(NamedTuple):
    """Some of a document's text."""

    text: str  # without NUL and lone surrogates
    ends: bool  # whether the document ends here
    document: str  # its name in a sentence: a path, perhaps with a row


@dataclass
class Reading:
    """Progress of reading a source. One thread writes it, any may look."""

    total_bytes: int = 0  # of its files; 0: a stream, whose end nobody knows
    read_bytes: int = 0
    total_tokens: int = 0  # that are wanted of a stream; 0: all
    tokens: int = 0  # made of it
    rows: int = 0  # documents of files and streams that have one in each row
    left_out: int = 0  # rows that hold no text
    remarks: list[str] = field(default_factory=list)  # sentences for the end: what was left out or replaced, by file

    def took(self, nbytes: int) -> None:
        """So many bytes more are read."""
        self.read_bytes += nbytes
