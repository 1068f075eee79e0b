"""A daemon's home directory: its files, the lock that keeps a second daemon out, and its memory across restarts.

Remembered are a join, the run that the ledger and the checkpoints are of (`store.py`), the port, the incarnation, and a
run's early end.

Relies on POSIX file locks and renames. It knows nothing of the network or the run's progress.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import socket
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from swarmd.daemon.in_order import InOrder
from swarmd.daemon.remembered import Remembered, RememberedRun, parse_remembered, parse_run
from swarmd.errors import ConfigError
from swarmd.files import check_regular, open_private, read_json, read_regular, write_atomically
from swarmd.swarm.wire.messages.common import INCARNATION_STEP
from swarmd.swarm.wire.messages.fields import INCARNATION_LIMIT

SOCKET_PATH_LIMIT_BYTES = 107  # sun_path of Linux is 108 bytes with the closing zero
DIAL_TIMEOUT_S = 1.0  # a daemon that lives accepts on its own socket at once
INCARNATION_FILE_BYTES = 32  # of one number
HALF_WRITTEN = (
    ".node.json.*",
    ".run.json.*",
    ".incarnation.*",
    ".ledger.jsonl.*",
    ".identity-*",
    ".control.new",
    ".port.*",
    ".ended.json.*",
)
"""Files on their way to their names, directly under the home."""
PORT_FILE_LIMIT_BYTES = 16
NODE_FILE_LIMIT_BYTES = 1 << 20  # it holds a few addresses; the run's settings are no longer either

log = logging.getLogger(__name__)


def default_home() -> Path:
    """The home that is meant when neither --home nor SWARMD_HOME names one."""
    return Path(os.environ.get("SWARMD_HOME") or Path.home() / ".swarmd")


class Home:
    """The directory of one daemon. Creating the object touches nothing; `prepare` and `locked` do."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().absolute()
        self.identity = self.path / "identity.key"
        self.control_socket = self.path / "control.sock"
        self.node_file = self.path / "node.json"
        self.run_file = self.path / "run.json"
        self.ledger = self.path / "ledger.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "swarmd.log"
        self.lock = self.path / "lock"
        self.port_file = self.path / "port"
        self.incarnation = self.path / "incarnation"
        self.ended_file = self.path / "ended.json"
        self.writes = InOrder("home")  # those that nobody waits for

    def prepare(self) -> None:
        """Creates the directory, readable by its owner only. Raises ConfigError."""
        if len(os.fsencode(self.control_socket)) > SOCKET_PATH_LIMIT_BYTES:
            raise ConfigError(
                f"the path {self.control_socket} is longer than a socket's may be ({SOCKET_PATH_LIMIT_BYTES} bytes); "
                "choose a shorter --home."
            )
        try:
            if not self.path.is_dir():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.path.chmod(0o700)  # a umask may have taken more
        except OSError as error:
            raise ConfigError(f"can't use {self.path} as home ({error.strerror}); choose another --home.") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the home for this process; the kernel lets go when it ends, however it ends. Raises ConfigError."""
        self.prepare()
        try:
            # Not inherited by children, so that a helper process that outlives the daemon doesn't keep the lock.
            descriptor = open_private(self.lock, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise ConfigError(
                f"can't use {self.lock} ({error.strerror}); remove it, or choose another --home."
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(self._taken(descriptor)) from error
            except OSError as error:
                raise ConfigError(f"can't lock {self.path} ({error.strerror}); choose another --home.") from error
            self._check_files()
            self._sweep()
            with contextlib.suppress(OSError):  # on a full disk nobody is told who has the home
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _check_files(self) -> None:
        """Checks that files to be read or appended to are of this home, and no links to others. Raises ConfigError."""
        for path in (self.node_file, self.run_file, self.port_file, self.incarnation, self.ledger):
            try:
                check_regular(path, follow=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigError(f"can't use {path} ({error.strerror}); put a file there, or remove it.") from error

    def _sweep(self) -> None:
        """Removes what a daemon that was killed had only half written: nobody else writes here while we have the lock.
        What can't be removed does no harm.
        """
        for pattern in HALF_WRITTEN:
            for path in self.path.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _taken(self, descriptor: int) -> str:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        who = f" (process {holder})" if holder.isdigit() else ""
        return f"another daemon{who} already uses {self.path}; stop it, or give this one its own --home."

    def remember(self, remembered: Remembered) -> None:
        """Keeps a join for the next start, beside the event loop where one runs."""
        text = json.dumps(dataclasses.asdict(remembered), indent=2) + "\n"
        self.writes.put(lambda: self._write_join(text))

    def _write_join(self, text: str) -> None:
        """Writes node.json. A full disk is logged, not raised: the join itself goes on."""
        try:
            write_atomically(self.node_file, text.encode())
        except OSError as error:
            log.error("can't remember the join in %s: %s", self.node_file, error.strerror)

    def remembered(self) -> Remembered | None:
        """The join of an earlier life, if there was one. Raises ConfigError when the file is damaged."""
        try:
            raw = read_regular(self.node_file, NODE_FILE_LIMIT_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"can't read {self.node_file} ({error.strerror}); repair or remove it.") from error
        remembered = parse_remembered(raw)
        if remembered is None:
            raise ConfigError(f"{self.node_file} is damaged; remove it and give --bootstrap again.")
        return remembered

    def kept_port(self) -> int:
        """The port at which this daemon listened last without being told where; 0: it never did. A damaged file counts
        as none: another port will be found.
        """
        try:
            text = read_regular(self.port_file, PORT_FILE_LIMIT_BYTES).decode("ascii", errors="replace").strip()
        except OSError:
            return 0
        return int(text) if text.isdecimal() and int(text) < 1 << 16 else 0

    def keep_port(self, port: int) -> None:
        """Writes down the port, so that others find this daemon where it was. A full disk is logged, not raised."""
        if port == self.kept_port():
            return
        try:
            write_atomically(self.port_file, f"{port}\n".encode())
        except OSError as error:
            log.error("can't keep the port in %s: %s", self.port_file, error.strerror)

    def remember_run(self, remembered: RememberedRun) -> None:
        """Writes down which run the ledger and the checkpoints are of. Raises OSError."""
        write_atomically(self.run_file, (json.dumps(dataclasses.asdict(remembered), indent=2) + "\n").encode())

    def remembered_run(self) -> RememberedRun | None:
        """The run that this home is of, None if there is none yet. Raises ConfigError when the file is damaged."""
        try:
            remembered = parse_run(read_json(self.run_file, NODE_FILE_LIMIT_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"can't read {self.run_file} ({error.strerror}); repair or remove it.") from error
        except ValueError:
            remembered = None
        if remembered is None:
            raise ConfigError(
                f"{self.run_file} is damaged; replace it by that of another peer of the run, or choose another --home."
            )
        return remembered

    def next_incarnation(self, clock_ns: int) -> int:
        """A number higher than in every earlier life of this home, written down before it is used: the clock's where
        that is more, so that a home without its memory is most likely ahead, too. Raises ConfigError.
        """
        try:
            kept = _parse_incarnation(read_regular(self.incarnation, NODE_FILE_LIMIT_BYTES))
            if kept is None:
                log.warning("%s is damaged; this daemon goes by its clock, and by what others know", self.incarnation)
            incarnation = min(max((kept or 0) + INCARNATION_STEP, clock_ns), INCARNATION_LIMIT)
        except FileNotFoundError:
            incarnation = min(max(INCARNATION_STEP, clock_ns), INCARNATION_LIMIT)
        except OSError as error:
            raise ConfigError(f"can't read {self.incarnation} ({error.strerror}); repair or remove it.") from error
        try:
            self.keep_incarnation(incarnation)
        except OSError as error:
            raise ConfigError(f"can't write {self.incarnation} ({error.strerror}); free or change --home.") from error
        return incarnation

    def keep_incarnation(self, incarnation: int) -> None:
        """Writes down that a life of this home has used a number. Raises OSError."""
        write_atomically(self.incarnation, f"{incarnation}\n".encode())

    def remember_end(self, fingerprint: str, why: str) -> None:
        """Writes down that a run has ended before its last step: a service that starts the daemon again must not go on
        with it. A full disk is logged, not raised.
        """
        try:
            write_atomically(self.ended_file, (json.dumps({"run": fingerprint, "why": why}, indent=2) + "\n").encode())
        except OSError as error:
            log.error("can't write down in %s that the run has ended: %s", self.ended_file, error.strerror)

    def check_not_ended(self, fingerprints: Collection[str]) -> None:
        """Raises ConfigError if a run of one of these names has ended here before its last step."""
        try:
            plain = read_json(self.ended_file, NODE_FILE_LIMIT_BYTES)
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            plain = None
        if not isinstance(plain, dict) or not all(isinstance(plain.get(key), str) for key in ("run", "why")):
            raise ConfigError(f"{self.ended_file} can't be read; see swarmd.log for why the run ended, and remove it.")
        if plain["run"] in fingerprints:
            raise ConfigError(
                f"this run has ended: {plain['why']} To go on from its checkpoints all the same, remove "
                f"{self.ended_file} at every peer and start with --resume."
            )

    def has_checkpoints(self) -> bool:
        """True if a version of some stage was saved here. Version 0, which the first release wrote down when it ended
        before the first step, is none.
        """
        return any(name.strip("0") for name in self._saved())

    def is_checkpointed(self, known: RememberedRun | None) -> bool:
        """True if its run has come to a version that is on disks, as far as this home knows."""
        if self.has_checkpoints():
            return True
        # The first release also said so in homes that held nothing but version 0.
        return known is not None and known.checkpointed and not self.never_stepped()

    def never_stepped(self) -> bool:
        """True if version 0 was all that the first release ever wrote down here."""
        return bool(self._saved()) and not self.has_checkpoints() and not self.ledger.exists()

    def _saved(self) -> set[str]:
        """The versions that were saved, as their folders name them."""
        found = self.checkpoints.glob("step-*/stage-*.json") if self.checkpoints.is_dir() else ()
        return {path.parent.name.removeprefix("step-") for path in found}

    def clear_stale_socket(self) -> None:
        """Removes the control socket of a daemon that died. Raises ConfigError when somebody answers on it, or when it
        isn't one.
        """
        try:
            if not stat.S_ISSOCK(self.control_socket.lstat().st_mode):
                raise ConfigError(f"{self.control_socket} is not a socket; remove it, or choose another --home.")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(DIAL_TIMEOUT_S)
            try:
                probe.connect(os.fspath(self.control_socket))
            except TimeoutError:
                pass  # its queue of connections is full, so somebody listens
            except OSError:
                self.control_socket.unlink(missing_ok=True)
                return
        raise ConfigError(f"another daemon already answers at {self.control_socket}; stop it or choose another --home.")


def _parse_incarnation(raw: bytes) -> int | None:
    """None if it is no number that a daemon writes. One at the end of the range is where a liar drove it: given up."""
    text = raw.strip()
    if len(raw) > INCARNATION_FILE_BYTES or not text.isdigit():
        return None
    return kept if 0 < (kept := int(text)) < INCARNATION_LIMIT else None
