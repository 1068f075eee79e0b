"""The words of a liar: messages as frames, made by hand, and what is read from answers.

Production makes a message only of values that it would take itself. An attacker says what it likes, so nothing here
passes through the classes of `swarmd/swarm/wire/messages/`: kinds and fields are written out, in this file alone, and
follow when they are renamed there. `test_words.py` holds each of them, with honest values, against the schema.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swarmd.swarm.wire.messages.common import PROTOCOL
from swarmd.values import Encoded, Frame, PeerId

Card = dict[str, Any]
"""A card as it is on the wire: fields that have their default are left out."""

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Stand:
    """The place in history at which a peer is."""

    version: int
    record: str  # its hash

    @property
    def step(self) -> int:
        """The step that it computes."""
        return self.version + 1


def _ballot(number: int, peer: PeerId) -> dict[str, Any]:
    return {"number": number, "peer": peer}


def _at(stand: Stand) -> dict[str, Any]:
    """The fields that name a step and what it follows from."""
    return {"step": stand.step, "record_hash": stand.record}


def _encoded(tensor: Encoded) -> list[Any]:
    return [tensor.codec, list(tensor.shape), len(tensor.data)]


# Presence


def changed(card: Card, **fields: Any) -> Card:
    """A card that says something else."""
    return {**card, **fields}


def stand_of(card: Card) -> Stand:
    return Stand(card.get("version", 0), card.get("record_hash", ""))


def hello(fingerprint: str, card: Card) -> Frame:
    return Frame("Hello", {"protocol": PROTOCOL, "fingerprint": fingerprint, "card": card, "known_incarnation": 0})


def card_in(answer: Frame) -> Card:
    """The card in a greeting."""
    card: Card = answer.body["card"]
    return card


def ask_settings() -> Frame:
    return Frame("AskSettings", {})


def settings(run: dict[str, Any], fingerprint: str) -> Frame:
    return Frame("Settings", {"run": run, "fingerprint": fingerprint, "protocol": PROTOCOL})


def settings_in(answer: Frame) -> tuple[dict[str, Any], str]:
    """A run as plain data, and its fingerprint."""
    return answer.body["run"], answer.body["fingerprint"]


def announce(card: Card) -> Frame:
    return Frame("Announce", {"card": card})


def summary(stage: int, cards: Sequence[Card], peers: int) -> Frame:
    return Frame("Summary", {"stage": stage, "cards": list(cards), "peers": peers})


def place(stage: int, cards: Sequence[Card], founder: PeerId, arrival: int) -> Frame:
    body = {"stage": stage, "cards": list(cards), "founder": founder, "resumes": False, "arrival": arrival}
    return Frame("Place", body)


def is_to_greet(answer: Frame) -> bool:
    """True if the other wants a greeting first."""
    return answer.kind == "SayHello"


def ack() -> Frame:
    return Frame("Ack", {})


# History


def ask_record(step: int) -> Frame:
    return Frame("AskRecord", {"step": step})


def record_in(answer: Frame) -> bytes:
    """The record in an answer to `ask_record`."""
    return bytes(answer.buffers[0])


def commit(record: bytes, voters: Sequence[PeerId] = (), *, relay: bool = False) -> Frame:
    return Frame("Commit", {"record": None, "relay": relay, "voters": list(voters)}, (record,))


def vote() -> Frame:
    """A word that a record is decided, whichever it is."""
    return Frame("Vote", {"accepted": True, "decided": True})


def prepare(stand: Stand, number: int, peer: PeerId) -> Frame:
    return Frame("Prepare", {"step": stand.step, "parent_hash": stand.record, "ballot": _ballot(number, peer)})


def accept(stand: Stand, number: int, peer: PeerId, record: bytes) -> Frame:
    ballot = _ballot(number, peer)
    body = {"step": stand.step, "parent_hash": stand.record, "ballot": ballot, "record": None}
    return Frame("Accept", body, (record,))


def promise(number: int, peer: PeerId) -> Frame:
    nothing = _ballot(0, "")
    body = {"granted": True, "promised": _ballot(number, peer), "accepted": nothing, "record": None}
    return Frame("Promise", body, (b"",))


def gradient_part(parts: int, data: Encoded) -> Frame:
    return Frame("GradientPart", {"parts": parts, "data": _encoded(data)}, data.data)


def took_over(stand: Stand, number: int, peer: PeerId, incarnation: int) -> Frame:
    return Frame("TookOver", {**_at(stand), "ballot": _ballot(number, peer), "incarnation": incarnation})


# Steps


def ask_lease(stand: Stand, want: int, completed: Ranges = (), held: Ranges = ()) -> Frame:
    return Frame("AskLease", {**_at(stand), "want": want, "completed": list(completed), "leased": list(held)})


def revoke(step: int, indices: Ranges) -> Frame:
    return Frame("Revoke", {"step": step, "indices": list(indices)})


def ask_stay(stand: Stand, stage: int) -> Frame:
    return Frame("AskStay", {**_at(stand), "stage": stage})


# Rounds


def close(stand: Stand, number: int, peer: PeerId) -> Frame:
    return Frame("Close", {**_at(stand), "ballot": _ballot(number, peer)})


def freeze(stand: Stand, number: int, peer: PeerId) -> Frame:
    return Frame("Freeze", {**_at(stand), "ballot": _ballot(number, peer)})


def ask_holdings(stand: Stand, number: int, peer: PeerId, *, spared: Ranges = (), blame: str = "") -> Frame:
    said = {"what": blame, "stage": -1, "peer": "", "index": -1}
    body = {**_at(stand), "ballot": _ballot(number, peer), "spared": list(spared), "blame": said}
    return Frame("AskHoldings", body)


def subtract(stand: Stand, number: int, peer: PeerId, indices: Ranges) -> Frame:
    return Frame("Subtract", {**_at(stand), "indices": list(indices), "ballot": _ballot(number, peer)})


def resend(stand: Stand, number: int, peer: PeerId, stage: int, indices: Ranges, members: Sequence[PeerId]) -> Frame:
    body = {**_at(stand), "indices": list(indices), "stage": stage, "members": list(members), "anew": True}
    return Frame("Resend", {**body, "ballot": _ballot(number, peer)})


def plan(stand: Stand, number: int, peer: PeerId, size: int, members: Sequence[PeerId]) -> Frame:
    """A plan of one part, which its sender owns."""
    part = {"start": 0, "stop": size, "owner": peer, "digest": ""}
    body = {"step": stand.step, "attempt": f"{peer}/1/0/1", "members": list(members), "parts": [part], "tokens": 1}
    return Frame("Plan", {**body, "codec": "fp32", "ballot": _ballot(number, peer), "thaws": [0] * len(members)})


def averaged(data: Encoded) -> Frame:
    return Frame("Averaged", {"data": _encoded(data)}, data.data)


def hand_over(stand: Stand, stage: int, start: int, data: Encoded, indices: Ranges) -> Frame:
    body = {**_at(stand), "stage": stage, "start": start, "stop": start + data.shape[0], "data": _encoded(data)}
    counts = {"loss_sum": 0.0, "resent": 0, "subtracted": 0}
    return Frame("HandOver", {**body, "indices": list(indices), "spoiled": [], **counts}, data.data)


def is_taken_over(answer: Frame | None) -> bool:
    """True if a sum that was handed over is part of the other's now."""
    return answer is not None and answer.kind == "SumTaken" and bool(answer.body["whole"])


# Hops


def hop(stand: Stand, index: int, tokens: bytes, activation: Encoded, *, evaluate: bool = False) -> Frame:
    body = {**_at(stand), "index": index, "again": False, "evaluate": evaluate, "codec": "fp32"}
    return Frame("Hop", {**body, "tokens": None, "activation": _encoded(activation)}, (tokens, *activation.data))


def hop_in(frame: Frame) -> tuple[int, int]:
    """The step and index of a hop."""
    return frame.body["step"], frame.body["index"]


def tokens_in(frame: Frame) -> bytes:
    """The text in a hop, as tokens."""
    return bytes(frame.buffers[0])


def cancel(hops: Sequence[tuple[int, int]]) -> Frame:
    return Frame("Cancel", {"hops": list(hops)})


def beat(hops: Sequence[tuple[int, int]], counter: int, service_s: float, next_s: float) -> Frame:
    said = [{"step": step, "index": index, "state": "computing", "seconds": 0.0} for step, index in hops]
    body = {"hops": said, "counter": counter, "busy_seconds": 0.0, "service_seconds": service_s}
    return Frame("Beat", {**body, "next_seconds": next_s})


def not_finite() -> Frame:
    return Frame("NotFinite", {"blame": {"what": "activation", "stage": -1, "peer": "", "index": -1}})


def busy() -> Frame:
    return Frame("Busy", {"in_flight": 1})


def located(*, here: bool) -> Frame:
    return Frame("Located", {"here": here})


# State


def snapshot(version: int, record: bytes, nbytes: int, chunk_bytes: int, hashes: Sequence[str]) -> Frame:
    body = {"version": version, "record": None, "nbytes": nbytes, "chunk_bytes": chunk_bytes}
    return Frame("Snapshot", {**body, "hashes": list(hashes)}, (record,))


def chunk(data: bytes) -> Frame:
    return Frame("Chunk", {"data": None}, (data,))


def wanted_checkpoint(frame: Frame) -> tuple[int, int]:
    """The stage of the checkpoint that is asked for, and the number of a piece of it; 0 if the whole is meant."""
    return frame.body["checkpoint"]["stage"], frame.body.get("number", 0)


def ask_checkpoints() -> Frame:
    return Frame("AskCheckpointList", {})


def ask_snapshot(stage: int) -> Frame:
    return Frame("AskSnapshot", {"stage": stage, "version": 0})


NOTES = ("Announce", "Beat", "Cancel", "Commit", "TookOver", "Revoke", "AskStay", "Room")
"""Kinds that a peer only hears: an attacker says that it has."""
