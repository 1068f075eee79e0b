"""A stage's state on disk: `<directory>/step-000123/stage-1.safetensors` and, written last, its manifest
`stage-1.json`.

A manifest names the length, hash and root of its state, and its own hash, so a torn or damaged checkpoint is never
taken for a good one: loading falls back to the version before. The root, by which peers compare theirs, is worked out
where an older release didn't write it. Only tensors and JSON. Relies on POSIX renames; knows no
engine and no peers.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmd.chunks import state_root
from swarmd.files import open_regular, read_json, read_regular, write_atomically
from swarmd.values import Buffer

FORMAT = 2  # raised when older code could not read it
RECORD_TYPES: dict[int, type] = {1: dict, 2: str}
"""What a manifest has as its record, by format: until the second one it was the record's fields, since then it is the
record's own text, whose bytes its hash names.
"""
FIRST_VERSION = 1  # version 0 is made from the seed; the first release wrote it down sometimes, without a record
KEEP_AT_LEAST = 2  # versions: the newest may be the one that a power cut tore
TORN_PREFIX = ".new-"  # of a file that is being written, or was when the machine died
MANIFEST_BYTES_LIMIT = 16 << 20  # bytes; a record lists members, not tensors
FIELDS = {"bytes": int, "blake2b": str, "root": str}  # of a manifest, besides what it is of
STEP_NAME = re.compile(r"step-(\d{6,})")
MANIFEST_NAME = re.compile(r"stage-(\d+)\.json")

KeptRecord = str | dict[str, Any]
"""The commit record in a manifest, whatever its format: not for the stage to understand."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A stage's verified state at a version, and the commit record that made it."""

    version: int
    stage: int
    state: bytes
    record: KeptRecord
    root: str  # names the state's bytes (swarmd/chunks.py)


def save_stage(directory: Path, version: int, stage: int, state: Buffer, record: str, keep: int) -> Path:
    """Writes a checkpoint, then removes this stage's versions older than the newest `keep`, and newer ones: they are of
    a history that was given up. Returns the manifest's path.

    Raises OSError and leaves the older ones alone if the disk is full.
    """
    assert version >= FIRST_VERSION, "the initial state is no checkpoint"
    folder = directory / f"step-{version:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": FORMAT,
        "version": version,
        "stage": stage,
        "bytes": memoryview(state).nbytes,
        "blake2b": hashlib.blake2b(state, digest_size=32).hexdigest(),
        "root": state_root(state),
        "record": record,
    }
    manifest["check"] = _check(manifest)
    tensors, path = folder / f"stage-{stage}.safetensors", folder / f"stage-{stage}.json"
    try:
        write_atomically(tensors, state, prefix=TORN_PREFIX)
        write_atomically(path, json.dumps(manifest, indent=1).encode(), prefix=TORN_PREFIX)
    except OSError:
        with contextlib.suppress(OSError):  # what there was before, whole, stays
            if not path.exists():
                tensors.unlink(missing_ok=True)
            folder.rmdir()
        raise
    _prune(directory, stage, version, max(keep, KEEP_AT_LEAST))
    return path


def load_stage(directory: Path, stage: int, version: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint of a stage, or that of `version`; None if there is none. Damaged ones are reported
    and passed over.
    """
    versions = [version] if version is not None else saved_versions(directory, stage)
    for candidate in versions:
        folder = directory / f"step-{candidate:06d}"
        try:
            return _load(folder, candidate, stage)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.warning("the checkpoint of stage %d at version %d is passed over: %s", stage, candidate, error)
    return None


def saved_versions(directory: Path, stage: int) -> list[int]:
    """Versions with a manifest of the stage, newest first. They may still prove damaged."""
    return [version for version, found in saved(directory) if found == stage]


def saved(directory: Path) -> list[tuple[int, int]]:
    """Every (version, stage) with a manifest, newest first; version 0 is none."""
    found = ((version, stage) for version, stage, _ in _manifests(directory) if version >= FIRST_VERSION)
    return sorted(found, reverse=True)


def _manifests(directory: Path) -> Iterator[tuple[int, int, Path]]:
    for folder in directory.iterdir() if directory.is_dir() else ():
        step = STEP_NAME.fullmatch(folder.name)
        for path in folder.iterdir() if step and folder.is_dir() else ():
            if step and (match := MANIFEST_NAME.fullmatch(path.name)):
                yield int(step[1]), int(match[1]), path


def state_file(directory: Path, version: int, stage: int) -> Path:
    """The path of a stage's state, be it there or not."""
    return directory / f"step-{version:06d}" / f"stage-{stage}.safetensors"


def read_manifest(directory: Path, version: int, stage: int) -> dict[str, Any] | None:
    """A checkpoint's manifest, if that is whole; the state may still prove damaged."""
    try:
        return _manifest(state_file(directory, version, stage).with_suffix(".json"), version, stage)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("the checkpoint of stage %d at version %d is passed over: %s", stage, version, error)
        return None


def _manifest(path: Path, version: int, stage: int) -> dict[str, Any]:
    """Raises FileNotFoundError, OSError, ValueError (torn, damaged or of another version)."""
    try:
        manifest = read_json(path, MANIFEST_BYTES_LIMIT)
    except ValueError as error:
        raise ValueError(f"{path} is damaged") from error
    if not isinstance(manifest, dict) or manifest.pop("check", None) != _check(manifest):
        raise ValueError(f"{path} is damaged")
    record_type = RECORD_TYPES.get(number) if type(number := manifest.get("format")) is int else None
    if record_type is None or tuple(map(manifest.get, ("version", "stage"))) != (version, stage):
        raise ValueError(f"{path} is of another format, version or stage")
    fields = {**FIELDS, "record": record_type}
    if any(type({"root": "", **manifest}.get(key)) is not kind for key, kind in fields.items()):
        raise ValueError(f"{path} lacks what a manifest has")
    return manifest


def _load(folder: Path, version: int, stage: int) -> Checkpoint:
    """Reads and verifies. Raises FileNotFoundError, OSError, ValueError (torn, damaged or of another version)."""
    path = folder / f"stage-{stage}.json"
    manifest = _manifest(path, version, stage)
    state_path = path.with_suffix(".safetensors")
    if state_path.stat().st_size != manifest["bytes"]:
        raise ValueError(f"{state_path} has another length than its manifest says")
    state = read_regular(state_path, manifest["bytes"])
    if hashlib.blake2b(state, digest_size=32).hexdigest() != manifest["blake2b"]:
        raise ValueError(f"{state_path} is damaged")
    return Checkpoint(version, stage, state, manifest["record"], manifest.get("root") or state_root(state))


def _check(manifest: dict[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _prune(directory: Path, stage: int, newest: int, keep: int) -> None:
    versions = saved_versions(directory, stage)
    kept = [version for version in versions if version <= newest][:keep]
    for version in versions:
        if version not in kept:
            remove(directory, version, stage)
    for version in range(FIRST_VERSION):
        remove(directory, version, stage)


def remove(directory: Path, version: int, stage: int) -> None:
    """Removes a checkpoint, manifest first, so that no manifest is left without its state; and what a crash left."""
    folder = directory / f"step-{version:06d}"
    (folder / f"stage-{stage}.json").unlink(missing_ok=True)
    (folder / f"stage-{stage}.safetensors").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()  # unless it holds another stage


def clear_torn(directory: Path) -> None:
    """Removes what was being written when the machine or the process died."""
    for folder in directory.iterdir() if directory.is_dir() else ():
        for torn in folder.glob(f"{TORN_PREFIX}*") if folder.is_dir() else ():
            torn.unlink(missing_ok=True)


def limit_copies(directory: Path, own: int, limit_bytes: int) -> None:
    """Removes the oldest checkpoints of other stages than `own` until the rest fits."""
    total = 0
    for version, stage in saved(directory):  # newest first
        if stage == own:
            continue
        with contextlib.suppress(FileNotFoundError):
            total += state_file(directory, version, stage).stat().st_size
        if total > limit_bytes:
            remove(directory, version, stage)


def read_state(directory: Path, version: int, stage: int, start: int, stop: int) -> bytes | None:
    """Bytes [start, stop) of a state as they are now, unverified; None if they can't be read."""
    try:
        with open_regular(state_file(directory, version, stage)) as file:
            file.seek(start)
            return file.read(stop - start)
    except OSError as error:
        log.warning("version %d of stage %d can't be read: %s", version, stage, error)
        return None
