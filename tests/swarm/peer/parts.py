"""Parts of a peer that only note what they are told."""

from typing import Any


class Part:
    """Notes each call as "part.method", with its arguments; `answers` has what a method returns."""

    def __init__(self, name: str, log: list[Any], **answers: Any) -> None:
        self._name, self._log, self._answers = name, log, answers

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self._log.append((f"{self._name}.{method}", *arguments, *named.values()))
            return self._answers.get(method)

        return call


class AsyncPart(Part):
    """A part whose methods are coroutines."""

    def __getattr__(self, method: str) -> Any:
        note = super().__getattr__(method)

        async def call(*arguments: Any, **named: Any) -> Any:
            return note(*arguments, **named)

        return call
