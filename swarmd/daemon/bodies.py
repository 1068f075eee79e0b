"""Bodies of the control socket's requests and answers: JSON objects, read with distrust, written without NaN."""

import asyncio
import json
import math
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from swarmd.errors import ConfigError

BODY_TIMEOUT_S = 10.0  # a client on the same machine sends its body at once or is broken


@dataclass(frozen=True)
class Body:
    """The form of a command's body: a JSON object with these keys, all of them unless it may be `empty`."""

    types: dict[str, tuple[type, ...]]
    example: str
    empty: bool = False

    def wanted(self) -> str:
        return f"the body must be a JSON object like {self.example}."


async def read_body(request: web.Request, expected: Body) -> dict[str, Any]:
    """Reads a request's body as the JSON object that is expected. Raises ConfigError for every other body."""
    async with asyncio.timeout(BODY_TIMEOUT_S):
        raw = await request.read()
    try:
        body = json.loads(raw) if raw or not expected.empty else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(expected.wanted()) from error
    if not isinstance(body, dict) or not body.keys() <= expected.types.keys():
        raise ConfigError(expected.wanted())
    if not expected.empty and body.keys() != expected.types.keys():
        raise ConfigError(expected.wanted())
    if any(type(value) not in expected.types[key] for key, value in body.items()):
        raise ConfigError(expected.wanted())
    return body


def json_line(content: Any) -> bytes:
    """One line of an answer that comes line by line."""
    return json.dumps(_finite(content)).encode() + b"\n"


def json_answer(content: Any, status: int = 200) -> web.Response:
    """A whole answer."""
    return web.json_response(_finite(content), status=status)


def _finite(content: Any) -> Any:
    """The same with infinities and NaN as null: a loss may be one, and JSON has no word for them."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def error_answer(status: int, sentence: str) -> web.Response:
    """An answer {"error": sentence}."""
    return json_answer({"error": sentence}, status)
