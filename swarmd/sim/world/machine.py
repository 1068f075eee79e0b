"""One simulated machine: everything that a peer runs belongs to it, and can be stopped, slowed down or lost with it.

Tasks and callbacks belong to the machine named in their context; what a task starts inherits it. The loop (`clock.py`)
sends all that belongs to a machine through a `Gate`, so that a paused machine (SIGSTOP) does nothing at all, and sees
its timers late and all at once when it goes on. The code that runs on it knows nothing of that.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from swarmd.sim.world.points import Points
from swarmd.values import PeerId

MACHINE: contextvars.ContextVar["Machine | None"] = contextvars.ContextVar("machine", default=None)
"""The machine that the present task or callback runs on; None for the world itself: network, devices, tests."""

WORLD = contextvars.Context()
"""An empty context, for what belongs to no machine though a machine's code set it going."""

BURIAL_ROUNDS = 100  # cancellations after which a task that still lives is a bug of its own

State = Literal["running", "paused", "dying", "dead"]


class Gate(asyncio.Handle):
    """A callback on its way to a machine."""

    __slots__ = ("machine",)

    def __init__(
        self,
        machine: "Machine",
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
    ) -> None:
        super().__init__(callback, args, loop, context)
        self.machine = machine

    def _run(self) -> None:
        if self.machine.runs:
            super()._run()
        elif self.machine.state == "paused":
            self.machine.stashed.append(self)


class GatedTimer(asyncio.TimerHandle):
    """A timer on its way to a machine."""

    __slots__ = ("machine",)

    def __init__(
        self,
        machine: "Machine",
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self.machine = machine

    def _run(self) -> None:
        if self.machine.runs:
            super()._run()
        elif self.machine.state == "paused":
            self.machine.stashed.append(self)


class Host:
    """One computer under several machines of the world: their devices are processes that share its cores.

    speeds: of each process when 1, 2, .. of them compute at once, relative to one alone; beyond the last, they share
    evenly what that many get.
    """

    def __init__(self, speeds: Sequence[float]) -> None:
        assert speeds and min(speeds) > 0, "a host that computes nothing"
        self._speeds = tuple(speeds)
        self._busy: dict[Machine, None] = {}

    def note(self, machine: "Machine", *, busy: bool) -> None:
        if busy == (machine in self._busy):
            return
        if busy:
            self._busy[machine] = None
        else:
            del self._busy[machine]
        count, most = len(self._busy), len(self._speeds)
        slowdown = 1.0 / self._speeds[count - 1] if 0 < count <= most else count / most / self._speeds[-1]
        for each in (*self._busy, machine):
            each.slowdown = slowdown or 1.0


class Machine:
    """One machine of the world, as long as it lives. A restarted peer gets another one."""

    def __init__(self, name: PeerId, points: Points | None = None) -> None:
        self.name = name
        self.points = points or Points()
        self.state: State = "running"
        self.runs = True  # its code may run: `running` or `dying`
        self.failed: Callable[[BaseException], None] = _raise  # hears of what must not happen
        self.step: Callable[[], int] = lambda: 0  # the peer's present step
        self.stashed: list[Gate | GatedTimer] = []
        self.context = contextvars.Context()
        self.context.run(MACHINE.set, self)
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order of their start
        self.host: Host | None = None  # whose cores its device shares with others
        self._slowdown = 1.0
        self._watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<{self.name} {self.state}>"

    @property
    def alive(self) -> bool:
        """False once it has crashed, though its tasks may still be ending."""
        return self.state in ("running", "paused")

    @property
    def paused(self) -> bool:
        return self.state == "paused"

    @property
    def slowdown(self) -> float:
        """The factor by which its device takes longer than usual."""
        return self._slowdown

    @slowdown.setter
    def slowdown(self, factor: float) -> None:
        assert factor > 0, "a device that never ends is a hung one"
        self._slowdown = factor
        self._tell()

    def set_busy(self, busy: bool) -> None:
        """Takes note that its device begins to compute, or has nothing more to do."""
        if self.host is not None:
            self.host.note(self, busy=busy)

    def watch(self, callback: Callable[[], None]) -> None:
        """Calls back when the machine pauses, goes on, changes its speed or dies. Devices need to know."""
        self._watchers.append(callback)

    def _tell(self) -> None:
        for callback in self._watchers:
            callback()

    # ------------------------------------------------------------------------------------------------- its code

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Starts a task on this machine; all that it starts runs here, too."""
        return asyncio.get_running_loop().create_task(work, name=name, context=self.context.copy())

    def call(self, callback: Callable[..., Any], *args: Any) -> None:
        """Runs a callback on this machine: now, or when it goes on; not at all if it is dead."""
        if self.runs:
            self.context.copy().run(callback, *args)
        elif self.state == "paused":
            self.stashed.append(Gate(self, callback, args, asyncio.get_running_loop(), self.context.copy()))

    def own(self, task: asyncio.Task[Any]) -> None:
        """Takes note of a task that was started here."""
        self._tasks[task] = None
        task.add_done_callback(self._disown, context=WORLD)

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks that run here, oldest first."""
        return list(self._tasks)

    # ------------------------------------------------------------------------------------------------- what befalls it

    def pause(self) -> None:
        """Stops everything, as SIGSTOP does. Nobody is told."""
        if self.state == "running":
            self.state, self.runs = "paused", False
            self._tell()

    def resume(self) -> None:
        """Goes on: what became due meanwhile runs now, in its order, without what was cancelled."""
        if self.state == "paused":
            self.state, self.runs = "running", True
            self._release()
            self._tell()

    def _release(self) -> None:
        stashed, self.stashed = self.stashed, []
        loop = asyncio.get_running_loop()
        for gate in stashed:
            loop.call_soon(self._again, gate, context=WORLD)

    def _again(self, gate: Gate | GatedTimer) -> None:
        """Runs a callback that came due during a pause, unless its owner cancelled it meanwhile."""
        if not gate.cancelled():
            gate._run()  # noqa: SLF001 - as its loop does

    def crash(self) -> None:
        """Ends the machine: its tasks are cancelled, and nothing runs here once they have ended. Its ports must be dead
        before: nothing that it says or writes while it dies reaches anybody.
        """
        if not self.alive:
            return
        self.state, self.runs = "dying", True
        self._release()
        self._tell()
        asyncio.get_running_loop().call_soon(self._bury, BURIAL_ROUNDS, context=WORLD)
        for task in self.tasks():
            task.cancel()

    def _bury(self, rounds: int) -> None:
        if not self._tasks:
            self.state, self.runs = "dead", False
            self.stashed.clear()
            return
        if rounds == 0:
            self.state, self.runs = "dead", False
            names = ", ".join(task.get_name() for task in self.tasks())
            self.failed(AssertionError(f"tasks of {self.name} outlive every cancellation: {names}"))
            return
        if rounds < BURIAL_ROUNDS:
            for task in self.tasks():
                task.cancel()
        asyncio.get_running_loop().call_soon(self._bury, rounds - 1, context=WORLD)

    async def at(self, point: str, step: int | None) -> bool:
        """Passes a logical point: the faults planned for it strike here, before anything else. True if the frame
        concerned is to be dropped. Callers look at `points.armed` first.
        """
        drop = self.points.reached(self, point, self.step() if step is None else step)
        if self.state != "running":
            await asyncio.sleep(0)  # not one instruction further
        return drop


def _raise(trouble: BaseException) -> None:
    raise trouble
