"""Settings of a run as the TOML file that a user would write. JSON's notation of numbers, texts and lists is TOML's."""

import json
from typing import Any

from swarmd.config import RunConfig, to_plain


def as_toml(run: RunConfig) -> str:
    """The text of the file."""
    tables: list[tuple[str, dict[str, Any]]] = [("", {})]
    for key, value in to_plain(run).items():
        if isinstance(value, dict):
            tables.append((f"[{key}]\n", value))
        else:
            tables[0][1][key] = value
    lines = [head + "".join(f"{key} = {json.dumps(value)}\n" for key, value in body.items()) for head, body in tables]
    return "\n".join(lines)
