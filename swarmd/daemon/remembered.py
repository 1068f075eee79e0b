"""A join and a run as a home remembers them: the content of node.json and run.json, read with distrust.

Pure; `home.py` reads and writes the files.
"""

from dataclasses import dataclass
from typing import Any

from swarmd.daemon.known_peers import KnownPeer, known_of, parse_known
from swarmd.files import parse_json


@dataclass(frozen=True)
class Remembered:
    """A join that outlives the daemon: `swarmd start` without further words does it again."""

    bootstrap: tuple[str, ...]
    stage: int | None = None


@dataclass(frozen=True)
class RememberedRun:
    """The run that a home's ledger and checkpoints are of."""

    run: dict[str, Any]  # its settings, plain
    fingerprint: str
    stage: int | None = None  # that was served here last
    peers: tuple[str, ...] = ()  # addresses of others, for releases that know no more
    checkpointed: bool = False  # it has come to a version that its peers wrote to their disks
    data: str | None = None  # where this machine's user says that its text is; "" nowhere; None: the first release's
    tokenizer: str | None = None  # ... and its tokenizer
    known: tuple[KnownPeer, ...] = ()  # the others


def parse_remembered(raw: bytes) -> Remembered | None:
    """The join in node.json; None if the file is damaged."""
    try:
        plain = parse_json(raw)
    except ValueError:
        return None
    if not isinstance(plain, dict):
        return None
    bootstrap, stage = plain.get("bootstrap"), plain.get("stage")
    if not isinstance(bootstrap, list) or not bootstrap or not all(isinstance(item, str) for item in bootstrap):
        return None
    if stage is not None and (type(stage) is not int or stage < 0):
        return None
    return Remembered(tuple(bootstrap), stage)


def parse_run(plain: Any) -> RememberedRun | None:
    """The run in run.json; None if the file is damaged."""
    if not isinstance(plain, dict):
        return None
    run, name, stage, peers = (plain.get(key) for key in ("run", "fingerprint", "stage", "peers"))
    if not isinstance(run, dict) or not isinstance(name, str) or not isinstance(peers, list):
        return None
    checkpointed = plain.get("checkpointed", False)
    if not (stage is None or (type(stage) is int and stage >= 0)) or not all(isinstance(it, str) for it in peers):
        return None
    data, tokenizer = plain.get("data"), plain.get("tokenizer")
    if not isinstance(checkpointed, bool) or not all(it is None or isinstance(it, str) for it in (data, tokenizer)):
        return None
    known = parse_known(plain.get("known")) or known_of(peers)
    return RememberedRun(
        run=run,
        fingerprint=name,
        stage=stage,
        peers=tuple(peers),
        checkpointed=checkpointed,
        data=data,
        tokenizer=tokenizer,
        known=known,
    )
