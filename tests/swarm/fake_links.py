"""Links without a network: a question goes straight to the handler of whom it asks."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from swarmd.errors import PeerFault, PeerUnreachable, Refused
from swarmd.swarm.fence import Fence


class FakeLinks:
    """One peer's links to those that share `everyone`."""

    def __init__(self, own: str, everyone: "dict[str, FakeLinks]") -> None:
        self._own, self.everyone = own, everyone
        everyone[own] = self
        self.fence = Fence()
        self.asked: list[tuple[str, Any]] = []
        self.cut_from: set[str] = set()  # peers that this one can't reach
        self.deaf = False  # nothing comes through to this peer
        self._handlers: dict[type, Callable[[str, Any], Awaitable[Any]]] = {}

    def handle(self, kind: Any, handler: Any) -> None:
        self._handlers[kind] = handler

    async def ask(self, peer: str, request: Any, *, deadline_s: float, urgency: str = "control") -> Any:
        """Raises PeerUnreachable, TimeoutError, and what the handler raises."""
        self.asked.append((peer, request))
        if (other := self.everyone.get(peer)) is None or peer in self.cut_from:
            raise PeerUnreachable(peer)
        if other.deaf:
            await asyncio.sleep(deadline_s)
            raise TimeoutError
        if (handler := other._handlers.get(type(request))) is None:
            raise Refused(f"nobody here answers {type(request).__name__}")
        return await handler(self._own, request)

    async def tell_all(self, peers: list[str], request: Any, *, deadline_s: float) -> dict[str, Any]:
        """The answers of those that give one."""
        answers = {}
        for peer in peers:
            try:
                answers[peer] = await self.ask(peer, request, deadline_s=deadline_s)
            except (PeerUnreachable, TimeoutError, Refused, PeerFault):
                continue
        return answers
