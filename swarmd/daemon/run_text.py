"""The run's text on this machine: found, named by digests for a run to be founded, and turned into tokens.

All of that may take minutes, so a thread does it beside the event loop, and `Waits` shows how far it is. The rules for
which files may be read are in `text.py`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from swarmd.config import NodeConfig, RunConfig, lineage
from swarmd.daemon.beside import run_beside
from swarmd.daemon.home import Home
from swarmd.daemon.remembered import RememberedRun
from swarmd.daemon.text import LocalText, as_first_release, is_finished, load_text, remembered_text, with_digests
from swarmd.daemon.waits import Waits
from swarmd.errors import Stopped
from swarmd.printable import size
from swarmd.swarm.ports import Data

if TYPE_CHECKING:
    from swarmd.text.reading import Reading

T = TypeVar("T")

Hears = Callable[["Reading"], None]


class RunText:
    """The text of one daemon's run."""

    def __init__(self, config: NodeConfig, home: Home, waits: Waits) -> None:
        self.local = LocalText(config.data, config.tokenizer)
        self._home, self._limits, self._waits = home, config.limits, waits
        self._cache = home.path / "data"
        self._reading: Reading | None = None  # how far it is; the thread that reads writes it

    async def named(self, run: RunConfig) -> RunConfig:
        """The run to found as it travels. The founder's own text is read for that, unless this home is of the run as
        the first release named it. Raises ConfigError.
        """
        if is_finished(run.data):
            return run
        old, known = as_first_release(run, self.local), self._home.remembered_run()
        if known is not None and known.fingerprint in lineage(old):
            return old
        with self._waits.during("the run's text to become tokens, so that the run can name it", self._progress):
            return await self._read(lambda heard: with_digests(run, self.local, self._cache, heard))

    async def find(self, run: RunConfig, before: RememberedRun | None) -> str:
        """Finds where the text is, by this daemon's options or its home. Returns what its user must give for it to be a
        head, one sentence; "" if it may be one.
        """
        known = await run_beside(lambda stopped: remembered_text(before, run, self._cache))
        self.local = LocalText(self.local.source or known.source, self.local.tokenizer or known.tokenizer)
        return self.local.lacking(run.data)

    async def load(self, run: RunConfig) -> Data:
        """The run's tokens. Raises ConfigError."""
        known = self._home.remembered_run()
        begun = known is not None and known.fingerprint in lineage(run) and self._home.is_checkpointed(known)

        def load(heard: Hears) -> Data:
            return load_text(run, self.local, self._cache, self._limits, begun=begun, progress=heard)

        with self._waits.during("the run's text to become tokens", self._progress):
            return await self._read(load)

    async def _read(self, call: Callable[[Hears], T]) -> T:
        """Calls in a thread; what is called tells how far it is, and is ended when it isn't wanted any more."""

        def work(stopped: Callable[[], bool]) -> T:
            def heard(reading: "Reading") -> None:
                self._reading = reading
                if stopped():
                    raise Stopped("the run's text is not wanted any more")

            try:
                return call(heard)
            finally:
                self._reading = None

        return await run_beside(work)

    def _progress(self) -> str:
        """The part of the text that is tokens already."""
        if (it := self._reading) is None:
            return ""
        if it.total_bytes:
            done = min(it.read_bytes, it.total_bytes)
            return f"{size(done)} of {size(it.total_bytes)}, {done / it.total_bytes:.0%}"
        return f"{it.tokens:,} of {it.total_tokens:,} tokens, {it.tokens / max(1, it.total_tokens):.0%}"
