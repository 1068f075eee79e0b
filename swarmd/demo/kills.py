"""`swarmd demo --kill-every`: kills a daemon now and then, without warning, and starts it again.

Chooses among those whose stage has another replica at work, since a stage's last replica would take its work with it.
Relies on the daemons' last answers; the demo shows and judges what comes of it.
"""

import asyncio
import random
import signal
from collections.abc import Callable, Sequence

from swarmd.demo.process import DaemonProcess

AWAY_S = 3.0  # from the kill to the new start
LAST_KILL_S = 20.0  # before the expected end of the run: who is killed must be back while the others are there


def plan_victim(peers: Sequence[DaemonProcess], rng: random.Random) -> DaemonProcess | None:
    """A daemon at work whose stage has another one at work; None if there is none."""
    working = [peer for peer in peers if peer.runs and peer.answers and peer.status and peer.status.state == "serving"]
    choices = [peer for peer in working if sum(other.stage == peer.stage for other in working) > 1]
    return rng.choice(choices) if choices else None


class Killer:
    """Kills and restarts until cancelled, or until the run is nearly over."""

    def __init__(
        self,
        peers: Sequence[DaemonProcess],
        every_s: float,
        options: Callable[[DaemonProcess], Sequence[str]],
        say: Callable[[str], None],
    ) -> None:
        self._peers, self._every_s, self._options, self._say = peers, every_s, options, say
        self._rng = random.Random()
        self.away: set[int] = set()  # numbers of the daemons that were killed and are not back at work
        self._down: set[int] = set()  # those of them that aren't started again yet: their last answer is an old one
        self.kills = 0

    async def run(self) -> None:
        """Kills daemons until it is cancelled or the end of the run is near."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._every_s)
                self.notice_returns()
                if self._nearly_over():
                    return
                if (victim := plan_victim(self._peers, self._rng)) is not None:
                    group.create_task(self._kill(victim))

    def notice_returns(self) -> None:
        """Takes in who is at work again."""
        for peer in self._peers:
            back = peer.number in self.away - self._down
            if back and peer.runs and peer.status and peer.status.state in ("serving", "finished"):
                self.away.discard(peer.number)

    def _nearly_over(self) -> bool:
        left = [peer.status.seconds_left for peer in self._peers if peer.runs and peer.status]
        return any(seconds is not None and seconds < LAST_KILL_S for seconds in left)

    async def _kill(self, victim: DaemonProcess) -> None:
        self.kills += 1
        self.away.add(victim.number)
        self._down.add(victim.number)
        self._say(f"kill -9 of peer {victim.number} (stage {victim.stage})")
        victim.signal(signal.SIGKILL)
        await victim.ended()
        await asyncio.sleep(AWAY_S)
        await victim.start(self._options(victim))
        self._down.discard(victim.number)
        self._say(f"peer {victim.number} is started again")
