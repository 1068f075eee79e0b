"""A disk that forgets everything: for tests of parts that write, and never ask what is there."""

from collections.abc import Container
from typing import Any


class NoDisk:
    """A store that forgets what is written."""

    def append_ledger(self, line: dict[str, Any]) -> None: ...

    def ledger_tail(self, count: int) -> dict[int, str]:
        return {}

    def void_ledger(self, version: int, records: Container[str] | None = None) -> None: ...
