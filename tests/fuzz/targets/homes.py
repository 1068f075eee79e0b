"""Files of a home, as a crash, a bad disk or a person left them.

A case is [name of the file, its content, whether a checkpoint's manifest has its right checksum]. The content is bytes,
or a tree that is written as JSON; of a ledger, a list of lines.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swarmd.daemon.home import Home
from swarmd.daemon.store import LocalStore
from swarmd.errors import ConfigError, PeerFault, UnknownFormat
from swarmd.net.identity import load_or_create_seed
from swarmd.settings import run_from_plain
from swarmd.stage.checkpoint import _check, save_stage
from swarmd.swarm.history.record_codec import record_from_raw
from tests.fuzz.parts import check_sentence
from tests.fuzz.target import Finding, Target
from tests.swarm.records import RUN, record

FIRST = Path(__file__).parents[2] / "compat" / "first" / "head"
VERSION, STAGE = 3, 1
STATE = b"state"
CLOCK = 1 << 60
NAMES = ("node.json", "run.json", "ended.json", "ledger.jsonl", "identity.key", "port", "incarnation", "manifest")


class Homes(Target):
    """A home whose files are replaced, one a case."""

    def __init__(self) -> None:
        shared = Path("/dev/shm")  # writes there cost no disk
        self._folder = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
        self._home = Home(self._folder.name)
        self._store = LocalStore(self._home)
        self._manifest = save_stage(self._home.checkpoints, VERSION, STAGE, STATE, record().raw.decode(), 2)
        self._whole = json.loads(self._manifest.read_bytes())

    def seeds(self) -> Iterator[Any]:
        yield ["node.json", {"bootstrap": ["/ip4/192.0.2.1/tcp/1/p2p/12D3KooWOne"], "stage": 1}, False]
        yield ["run.json", json.loads((FIRST / "run.json").read_bytes()), False]
        known = [{"peer": "One", "addresses": ["/ip4/192.0.2.1/tcp/1/p2p/One"], "worked": 1, "machine": "a/b"}]
        yield ["run.json", {**json.loads((FIRST / "run.json").read_bytes()), "known": known, "data": "text"}, False]
        yield ["ended.json", {"run": "0123456789abcdef", "why": "too many steps were skipped."}, False]
        lines = [json.loads(line) for line in (FIRST / "ledger.jsonl").read_text().splitlines()[:3]]
        yield ["ledger.jsonl", lines, False]
        yield ["ledger.jsonl", b'{"step": 1, "record": "a"}\n{"step": 2, "rec', False]
        yield ["identity.key", (FIRST / "identity.key").read_bytes(), False]
        yield ["port", b"4001\n", False]
        yield ["incarnation", b"1700000000000000000\n", False]
        yield ["manifest", self._whole, True]
        yield ["manifest", self._whole, False]
        yield ["manifest", json.loads((FIRST / "checkpoints/step-000044/stage-0.json").read_bytes()), True]

    def play(self, case: Any) -> None:
        match case:
            case [str(name), content, checked] if name in NAMES:
                path = self._manifest if name == "manifest" else self._home.path / name
                with contextlib.suppress(ValueError, TypeError, RecursionError):  # not every tree is JSON
                    path.write_bytes(self._bytes(name, content, checked))
                    self._read(name, path)

    def _bytes(self, name: str, content: Any, checked: Any) -> bytes:
        if isinstance(content, bytes):
            return content
        if name == "ledger.jsonl" and isinstance(content, list):
            return b"".join(it if isinstance(it, bytes) else json.dumps(it).encode() + b"\n" for it in content)
        if name == "manifest" and checked and isinstance(content, dict):
            content = {key: value for key, value in content.items() if key != "check"}
            content["check"] = _check(json.loads(json.dumps(content)))
        return json.dumps(content).encode()

    def _read(self, name: str, path: Path) -> None:
        """Raises Finding for all that is not declared: `play` passes over what it raises itself."""
        try:
            self._look(name, path)
        except (ConfigError, PeerFault, UnknownFormat) as trouble:
            check_sentence(trouble)
        except Finding:
            raise
        except Exception as trouble:
            raise Finding(f"{name}: {trouble!r}") from trouble

    def _look(self, name: str, path: Path) -> None:
        match name:
            case "node.json":
                self._home.remembered()
            case "run.json":
                self._look_at_run(path)
            case "ended.json":
                self._home.check_not_ended(["0123456789abcdef"])
            case "ledger.jsonl":
                self._look_at_ledger()
            case "identity.key":
                load_or_create_seed(path)
            case "port":
                if not 0 <= self._home.kept_port() < 1 << 16:
                    raise Finding("a port that is none")
            case "incarnation":
                self._home.next_incarnation(CLOCK)
            case "manifest":
                for _, _, raw, _ in self._store._list_checkpoints():
                    record_from_raw(RUN, raw)

    def _look_at_run(self, path: Path) -> None:
        known = self._home.remembered_run()
        self._home.is_checkpointed(known)
        if known is not None:
            run_from_plain(known.run, str(path))
            self._home.remember_run(known)
            if self._home.remembered_run() != known:
                raise Finding("a run that is another one once it is written down")

    def _look_at_ledger(self) -> None:
        self._store.append_ledger({"step": 9, "record": "last"})
        if self._store.ledger_tail(3).get(9) != "last":
            raise Finding("a damaged ledger hides the next line")
        self._store.void_ledger(5)

    def close(self) -> None:
        self._folder.cleanup()


TARGET = Homes
