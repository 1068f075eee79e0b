"""The Store port on a home directory: a ledger line per step, checkpoints of this peer's stage, copies of others'.

Relies on `stage.checkpoint` for the format of checkpoints, and does all that writes, or takes time, beside the event
loop; the ledger's lines in their order. A full or broken disk is reported (`trouble`, and now and then in the log), and
never stops training.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, TypeVar

from swarmd.daemon.home import Home
from swarmd.daemon.in_order import InOrder
from swarmd.daemon.kept_records import raw_of, text_of
from swarmd.daemon.remembered import RememberedRun
from swarmd.files import open_regular, parse_json, read_regular, write_atomically
from swarmd.stage.checkpoint import (
    clear_torn,
    limit_copies,
    load_stage,
    read_state,
    save_stage,
    saved,
    state_file,
)
from swarmd.swarm.ports import SavedCheckpoint
from swarmd.values import Buffer

LEDGER_LIMIT_BYTES = 64 << 20  # about 100,000 steps a file; the older half of the history is in ledger.jsonl.1
CHECKPOINTS_KEPT = 2  # versions of a stage; the newest may be torn when the machine dies while it is written
COPIES_LIMIT_BYTES = 64 << 30  # of other stages' checkpoints
LINE_BYTES = 8 << 10  # of a ledger line, at most: it names the members of one stage
TOLD_SECONDS = 60.0  # between two lines in the log about the same trouble: a full disk has one for each step

T = TypeVar("T")

Verdict = tuple[tuple[tuple[int, int] | None, ...], SavedCheckpoint | None]
"""Times and sizes of a checkpoint's manifest and state when it was read, and what it is; None: it wasn't whole."""

log = logging.getLogger(__name__)


class LocalStore:
    """The disk of one daemon."""

    def __init__(
        self,
        home: Home,
        *,
        keep: int = CHECKPOINTS_KEPT,
        ledger_limit_bytes: int = LEDGER_LIMIT_BYTES,
        copies_limit_bytes: int = COPIES_LIMIT_BYTES,
    ) -> None:
        assert keep >= CHECKPOINTS_KEPT
        self._home, self._keep = home, keep
        self._ledger_limit_bytes, self._copies_limit_bytes = ledger_limit_bytes, copies_limit_bytes
        self._void = home.ledger.with_name("ledger-void.jsonl")
        self._own = -1  # the stage whose checkpoints are this peer's own
        self._damaged: list[tuple[int, int]] = []  # version and stage of what was last found so
        self._looked: dict[Path, Verdict] = {}  # by state
        self.checking = ""  # how many checkpoints are checked, while that goes on
        self._troubles: dict[str, str] = {}  # what can't be done -> why
        self._told: dict[str, float] = {}  # -> when it was logged
        self._writing: set[asyncio.Future[bool]] = set()  # checkpoints
        self._ledger_writes, self._run_writes = InOrder("ledger"), InOrder("run.json")
        self._run: RememberedRun | None = None  # to be written down
        self._turn = asyncio.Lock()  # to write one: first come, first served
        with contextlib.suppress(OSError):
            clear_torn(home.checkpoints)

    @property
    def trouble(self) -> str:
        """The present trouble of this disk, in a sentence; "" when all is well."""
        return "; ".join(f"can't {what}: {why}" for what, why in sorted(self._troubles.items()))

    def _failed(self, what: str, error: OSError) -> None:
        why = error.strerror or type(error).__name__
        self._troubles[what] = why
        now = time.monotonic()
        if now - self._told.get(what, -TOLD_SECONDS) >= TOLD_SECONDS:
            self._told[what] = now
            log.error("can't %s in %s: %s; training goes on", what, self._home.path, why)

    def _done(self, what: str) -> None:
        if self._troubles.pop(what, None) is not None:
            self._told.pop(what, None)
            log.warning("can %s again in %s", what, self._home.path)

    def remember_run(self, known: RememberedRun) -> None:
        """Writes down whose the ledger and the checkpoints are, beside the event loop where one runs. Of several that
        come while the disk is slow the last is written.
        """
        self._run = known
        self._run_writes.put(self._write_run)  # or, if too many wait, one of these writes it

    def _write_run(self) -> None:
        known, self._run = self._run, None
        if known is None:
            return  # a call before this one has written it
        what = "write whose run this is"
        try:
            self._home.remember_run(known)
        except OSError as error:
            self._failed(what, error)
        else:
            self._done(what)

    # ---------------------------------------------------------------------------------------------- ledger

    def append_ledger(self, line: dict[str, Any]) -> None:
        """Appends one line, beside the event loop where one runs."""
        text = json.dumps(line, separators=(",", ":")) + "\n"
        self._write_ledger("write the ledger", lambda: self._append(text))

    def _write_ledger(self, what: str, call: Callable[[], None]) -> None:
        if not self._ledger_writes.put(call):
            self._failed(what, OSError(errno.ETIMEDOUT, "the disk doesn't answer"))

    def _append(self, text: str) -> None:
        """Appends one line in one write, so that a crash can tear at most the last one."""
        try:
            self._rotate(self._home.ledger)
            with open_regular(self._home.ledger, append=True, follow=False) as ledger:
                data = self._mend(ledger.tell()) + text.encode()
                if (ledger.write(data) or 0) < len(data):
                    raise OSError(0, "the line was written in part")
        except OSError as error:
            self._failed("write the ledger", error)
        else:
            self._done("write the ledger")

    def ledger_tail(self, count: int) -> dict[int, str]:
        """The records of the last lines. Waits for those that are being written."""
        self._ledger_writes.finish()
        try:
            return read_ledger_tail(self._home.ledger, count)
        except OSError as error:
            self._failed("read the ledger", error)
            return {}

    def void_ledger(self, version: int, records: Container[str] | None = None) -> None:
        """Moves the lines of steps after `version` to ledger-void.jsonl, beside the event loop where one runs; what
        can't be read stays where it is.
        """
        self._write_ledger("void lines of the ledger", lambda: self._void_lines(version, records))

    def _void_lines(self, version: int, records: Container[str] | None) -> None:
        for path in (self._home.ledger.with_name("ledger.jsonl.1"), self._home.ledger):
            try:
                self._void_in(path, version, records)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._failed("void lines of the ledger", error)
                return
        self._done("void lines of the ledger")

    def _void_in(self, path: Path, version: int, records: Container[str] | None) -> None:
        lines = read_regular(path, 2 * self._ledger_limit_bytes).splitlines(keepends=True)
        names = [_name_of(line) for line in lines]
        void = [it is not None and it[0] > version and (records is None or it[1] in records) for it in names]
        if any(void):
            self._rotate(self._void)
            with open_regular(self._void, append=True, follow=False) as voided:
                voided.write(b"".join(line for line, gone in zip(lines, void, strict=True) if gone))
            write_atomically(path, b"".join(line for line, gone in zip(lines, void, strict=True) if not gone))

    def _rotate(self, path: Path) -> None:
        """Begins a new file when one is full, and lets go of the one before."""
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > self._ledger_limit_bytes:
                os.replace(path, path.with_name(path.name + ".1"))

    def _mend(self, size: int) -> bytes:
        """A line end, if a crash or a full disk tore the last line, which must not swallow the next."""
        if size == 0:
            return b""
        with open_regular(self._home.ledger) as ledger:
            ledger.seek(size - 1)
            return b"" if ledger.read(1) == b"\n" else b"\n"

    # ---------------------------------------------------------------------------------------------- checkpoints

    async def _beside(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, call)

    async def save_checkpoint(
        self, version: int, stage: int, state: Buffer, record: Buffer, *, copy: bool = False
    ) -> bool:
        """Writes a stage's state at a version beside the event loop. Returns whether it was written. In the order in
        which this was called: each removes newer versions, and so would an older one that ends later.
        """
        if not copy:
            self._own = stage

        async def write() -> bool:
            async with self._turn:
                return await self._beside(lambda: self._save(version, stage, state, record, copy))

        writing = asyncio.create_task(write(), name=f"save version {version} of stage {stage}")
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        return await asyncio.shield(writing)

    async def settle(self, bound_s: float) -> None:
        """Waits for all that is being written, so long at most. What is torn then is passed over later."""
        others = [it for queue in (self._ledger_writes, self._run_writes, self._home.writes) for it in queue.pending()]
        writing: set[asyncio.Future[Any]] = {*self._writing, *others}
        if writing:
            await asyncio.wait(writing, timeout=bound_s)

    def _save(self, version: int, stage: int, state: Buffer, record: Buffer, copy: bool) -> bool:
        what = "save checkpoints"
        try:
            if copy and self._copied(version, besides=stage) + memoryview(state).nbytes > self._copies_limit_bytes:
                return False  # nor does it push out another one as new
            save_stage(self._home.checkpoints, version, stage, state, text_of(bytes(record)), self._keep)
            limit_copies(self._home.checkpoints, self._own, self._copies_limit_bytes)
        except OSError as error:
            self._failed(what, error)
            return False
        self._done(what)
        return True

    def _copied(self, version: int, besides: int) -> int:
        """Bytes of other stages' checkpoints of a version or a newer one."""
        directory = self._home.checkpoints
        others = [it for it in saved(directory) if it[0] >= version and it[1] not in (self._own, besides)]
        return sum(state_file(directory, *it).stat().st_size for it in others if state_file(directory, *it).exists())

    async def list_checkpoints(self) -> list[SavedCheckpoint]:
        """All checkpoints that are whole. Each state is read once, and again only when its file has changed."""
        try:
            return await self._beside(self._list_checkpoints)
        finally:
            self.checking = ""

    def _list_checkpoints(self) -> list[SavedCheckpoint]:
        found = []
        try:
            candidates = saved(self._home.checkpoints)
        except OSError as error:
            self._failed("read checkpoints", error)
            return []
        damaged, looked = [], dict[Path, Verdict]()
        for number, (version, stage) in enumerate(candidates):
            self.checking = f"{number} of {len(candidates)}"
            path = state_file(self._home.checkpoints, version, stage)
            seen, whole = looked[path] = self._examine(path, version, stage)
            if whole is not None:
                found.append(whole)
            elif seen[0] is not None:  # it wasn't pruned meanwhile
                damaged.append((version, stage))
        self._looked, self._damaged = looked, damaged
        return found

    def _examine(self, path: Path, version: int, stage: int) -> Verdict:
        """The verdict on a checkpoint; it is read only if its files are others than they were."""
        seen = tuple(_seen(file) for file in (path.with_suffix(".json"), path))
        known = self._looked.get(path)
        if known is not None and known[0] == seen:
            return known
        found = load_stage(self._home.checkpoints, stage, version)
        return seen, SavedCheckpoint(version, stage, raw_of(found.record), found.root) if found is not None else None

    def damaged(self) -> list[tuple[int, int]]:
        """The checkpoints that `list_checkpoints` last passed over; the log names the files."""
        return list(self._damaged)

    async def load_checkpoint(self, version: int, stage: int, root: str = "") -> tuple[Buffer, Buffer] | None:
        """A checkpoint, if it is whole, and of this root where one is given."""
        found = await self._beside(lambda: load_stage(self._home.checkpoints, stage, version))
        return (found.state, raw_of(found.record)) if found is not None and root in ("", found.root) else None

    async def read_checkpoint(self, version: int, stage: int, start: int, stop: int) -> Buffer | None:
        """A piece of a state."""
        return await self._beside(lambda: read_state(self._home.checkpoints, version, stage, start, stop))


def _seen(path: Path) -> tuple[int, int] | None:
    """Time and size of a file, None if it isn't there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def read_ledger_tail(path: Path, count: int) -> dict[int, str]:
    """The records of a ledger's last lines, by step; what is damaged is passed over. Raises OSError."""
    try:
        with open_regular(path) as ledger:
            ledger.seek(max(0, ledger.seek(0, os.SEEK_END) - count * LINE_BYTES))
            lines = ledger.read().splitlines()[-count:]
    except FileNotFoundError:
        return {}
    return dict(it for line in lines if (it := _name_of(line)) is not None)


def _name_of(line: bytes) -> tuple[int, str] | None:
    """Step and record of a ledger line; None if it is damaged."""
    try:
        plain = parse_json(line)
        step, record = plain["step"], plain.get("record", "")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return (step, record) if type(step) is int and isinstance(record, str) else None
