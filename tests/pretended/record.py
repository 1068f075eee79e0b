"""`python -m tests.pretended.record`: writes `bytes.json` anew, the most megabytes that each work of a stage holds."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.pretended.device import CARDS
from tests.pretended.test_pretended import BYTES, compile_guard, measure, peaks


def record(measured: dict[str, list[dict[str, Any]]]) -> None:
    """By card, preset, stage and work."""
    found: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    for card, stages in measured.items():
        for it in stages:
            found.setdefault(card, {}).setdefault(it["preset"], {})[str(it["stage"])] = peaks(it)
    BYTES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        guard = compile_guard(Path(folder))
        record({card: measure(guard, card) for card in CARDS})
