"""Checkpoints: whole or passed over, and assembled into a model again."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from swarmd.chunks import state_root
from swarmd.config import RunConfig, prolonged
from swarmd.daemon.kept_records import cut_anew, raw_of
from swarmd.errors import ConfigError
from swarmd.sim.engines.training import as_ids, plain_training, toy_tokens
from swarmd.stage import checkpoint
from swarmd.stage.checkpoint import _check, load_stage, read_manifest, save_stage, saved, saved_versions
from swarmd.stage.engine import StageEngine
from swarmd.stage.export import assemble, generate
from swarmd.stage.model import loss_sum
from swarmd.stage.reshape import reshape
from swarmd.swarm.history.record import build_end, build_record, build_return
from swarmd.swarm.history.record_codec import record_from_raw
from swarmd.swarm.wire.messages.round import StageReport
from tests.stage.toy import toy_run, train_pipeline

RECORD = '{"hash":"00ff"}\n{}'


def save(directory: Path, version: int, *, stage: int = 1, keep: int = 2, state: bytes | None = None) -> Path:
    return save_stage(directory, version, stage, state or b"state %d" % version, RECORD, keep)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    manifest = save(tmp_path, 3)
    assert manifest == tmp_path / "step-000003" / "stage-1.json"
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["stage-1.json", "stage-1.safetensors"]
    loaded = load_stage(tmp_path, 1)
    assert loaded is not None
    assert (loaded.version, loaded.stage, loaded.state, loaded.record) == (3, 1, b"state 3", RECORD)
    assert load_stage(tmp_path, 0) is None
    assert load_stage(tmp_path / "nowhere", 0) is None


def test_the_initial_state_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        save(tmp_path, 0)
    old = tmp_path / "step-000000"  # as the first release wrote it
    old.mkdir()
    for name in ("stage-1.json", "stage-1.safetensors"):
        (old / name).write_text("{}")
    assert saved_versions(tmp_path, 1) == []
    assert load_stage(tmp_path, 1) is None
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_the_newest_are_kept_and_never_fewer_than_two(tmp_path: Path) -> None:
    for version in (1, 2, 3, 4):
        save(tmp_path, version, keep=3)
        save(tmp_path, version, stage=0, keep=0)
    assert saved_versions(tmp_path, 1) == [4, 3, 2]
    assert saved_versions(tmp_path, 0) == [4, 3]
    assert saved(tmp_path) == [(4, 1), (4, 0), (3, 1), (3, 0), (2, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003", "step-000004"]
    assert load_stage(tmp_path, 1, version=2) is not None


def tear_state(folder: Path) -> None:
    state = folder / "stage-1.safetensors"
    state.write_bytes(state.read_bytes()[:-1])


def flip_state(folder: Path) -> None:
    state = folder / "stage-1.safetensors"
    raw = bytearray(state.read_bytes())
    raw[2] ^= 1
    state.write_bytes(raw)


def lose_state(folder: Path) -> None:
    (folder / "stage-1.safetensors").unlink()


def tear_manifest(folder: Path) -> None:
    manifest = folder / "stage-1.json"
    manifest.write_bytes(manifest.read_bytes()[:-5])


def flip_manifest(folder: Path) -> None:
    manifest = folder / "stage-1.json"
    manifest.write_text(manifest.read_text().replace("00ff", "00fe"))


def replace_manifest(folder: Path) -> None:
    (folder / "stage-1.json").write_text("[]")


@pytest.mark.parametrize("damage", [tear_state, flip_state, lose_state, tear_manifest, flip_manifest, replace_manifest])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-000002")
    loaded = load_stage(tmp_path, 1)
    assert loaded is not None
    assert loaded.version == 1
    assert load_stage(tmp_path, 1, version=2) is None


CHECKED = ("format", "version", "stage", "bytes", "blake2b", "record")


@pytest.mark.parametrize(
    ("lacking", "instead"), [*((key, it) for key in CHECKED for it in (None, [1.5])), ("root", [1.5])]
)
def test_a_manifest_that_lacks_something_is_passed_over(tmp_path: Path, lacking: str, instead: object) -> None:
    save(tmp_path, 2)
    path = save(tmp_path, 3)
    content = {**json.loads(path.read_bytes()), lacking: instead}
    del content["check"]
    if instead is None:
        del content[lacking]
    path.write_text(json.dumps({**content, "check": _check(content)}))  # written so, and not torn
    loaded = load_stage(tmp_path, 1)
    assert loaded is not None
    assert loaded.version == 2
    assert read_manifest(tmp_path, 3, 1) is None


def test_a_full_disk_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, 3)
    assert saved_versions(tmp_path, 1) == [2, 1]
    assert not list(tmp_path.rglob(".new-*"))
    assert not (tmp_path / "step-000003").exists(), "nor does every try leave a folder"
    assert json.loads((tmp_path / "step-000002" / "stage-1.json").read_text())["version"] == 2


def trained_homes(run: RunConfig, root: Path) -> list[Path]:
    """Each stage's checkpoint in a home of its own."""
    _, engines = train_pipeline(run)
    homes = [root / f"peer-{engine.stage}" for engine in engines]
    for home, engine in zip(homes, engines, strict=True):
        save_stage(home, run.steps, engine.stage, engine.export_state(), RECORD, 2)
    return homes


def test_the_stages_checkpoints_make_the_whole_model(tmp_path: Path) -> None:
    run = toy_run(steps=4)
    homes = trained_homes(run, tmp_path)
    version, module = assemble(homes, run)
    _, expected = plain_training(run)
    ids = as_ids(run, toy_tokens(run, 9, 0))
    actual_loss = loss_sum(module(ids[:, :-1]), ids[:, 1:]).item()
    assert version == 4
    assert actual_loss == pytest.approx(loss_sum(expected(ids[:, :-1]), ids[:, 1:]).item(), rel=1e-5)


def test_a_model_writes_text_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    run = toy_run(steps=20)
    homes = trained_homes(run, tmp_path)
    text = generate(homes, run, "the swarm", 40)
    assert text.startswith("the swarm")
    assert len(text.encode()) >= len("the swarm") + 40
    assert generate(homes, run, "the swarm", 40) == text
    assert generate(homes, run, "the swarm", 40, seed=1) != text
    assert generate(homes, run, "", 5)


def test_what_cannot_be_assembled_is_said(tmp_path: Path) -> None:
    run = toy_run(steps=1)
    homes = trained_homes(run, tmp_path)
    with pytest.raises(ConfigError, match=r"whole checkpoints of all 2 stages in .* \(version 1 lacks stage 1\)"):
        assemble(homes[:1], run)
    with pytest.raises(ConfigError, match="another model"):
        assemble(homes, toy_run(shared=True))
    save_stage(homes[0], 2, 0, b"garbage", RECORD, 2)
    save_stage(homes[1], 2, 1, b"garbage", RECORD, 2)
    with pytest.raises(ConfigError, match="holds no tensors"):
        assemble(homes, run)
    assert torch.is_grad_enabled()


def test_newer_versions_that_are_not_whole_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The newest lacks a stage; of the one before a checkpoint is damaged."""
    run = toy_run(steps=1)
    _, engines = train_pipeline(run)
    for version, engine in ((1, engines[0]), (1, engines[1]), (2, engines[0]), (2, engines[1]), (3, engines[0])):
        save_stage(tmp_path, version, engine.stage, engine.export_state(), RECORD, 3)
    flip_state(tmp_path / "step-000002")
    told: list[str] = []
    one = dataclasses.replace(run, model=dataclasses.replace(run.model, stages=1))
    assert reshape([tmp_path], run, one, tmp_path / "one", lambda kept, stages: RECORD, told.append) == 1
    assert told == [
        "version 3 is passed over: no checkpoint of stage 1 (1 of 2 stages are here)",
        "version 2 is passed over: no checkpoint of stage 1 (1 of 2 stages are here)",
    ]
    assert f"{tmp_path / 'step-000002' / 'stage-1.safetensors'} is damaged" in caplog.text
    assert assemble([tmp_path], run)[0] == 1
    assert caplog.text.count("version 3 is passed over") == 1, "what isn't told is logged"


def _report(stage: int, squared_norm: float) -> StageReport:
    return StageReport(stage, "d", squared_norm, 64, 128.0, 3, 0, 0, 0, True, (f"m{stage}",), (f"m{stage}",))


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_a_run_is_cut_into_other_stages_and_back(tmp_path: Path, optimizer: Any) -> None:
    """Every tensor is exactly what it was, and each stage's engine takes its own."""
    run = toy_run(steps=4)
    run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, name=optimizer))
    _, engines = train_pipeline(run)
    norms = (0.5, 0.25)
    record = build_record(
        run, "parent", 4, [_report(*it) for it in enumerate(norms)], conductor="m0", seconds=1.0, validation_loss=None
    )
    for engine in engines:
        save_stage(tmp_path / "two", run.steps, engine.stage, engine.export_state(), record.raw.decode(), 2)
    one = dataclasses.replace(run, model=dataclasses.replace(run.model, stages=1))
    assert reshape([tmp_path / "two"], run, one, tmp_path / "one", partial(cut_anew, run)) == run.steps
    assert reshape([tmp_path / "one"], one, run, tmp_path / "again", partial(cut_anew, one)) == run.steps
    whole = StageEngine(one, 0)
    checkpoint = load_stage(tmp_path / "one", 0)
    assert checkpoint is not None
    whole.import_state(checkpoint.state)
    assert record_from_raw(one, raw_of(checkpoint.record)).stages[0].squared_norm == 0.75
    for engine in engines:
        again = load_stage(tmp_path / "again", engine.stage)
        assert again is not None
        restored = StageEngine(run, engine.stage)
        assert restored.import_state(again.state) == engine.digest()
        before, after = safetensors.torch.load(bytes(engine.export_state())), safetensors.torch.load(again.state)
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        for name, value in engine.module.named().items():
            assert torch.equal(value, whole.module.named()[name])


def test_the_record_of_a_prolonged_run_stays_one_of_it_when_it_is_cut_anew(tmp_path: Path) -> None:
    """It may be made under the first total or the present one, begin the longer run, or end it."""
    run = prolonged(toy_run(steps=4), 8)
    reports = [_report(stage, 4.0) for stage in range(2)]
    plain: Any = {"conductor": "m0", "seconds": 1.0, "validation_loss": None}
    old, new = (build_record(it, "parent", 3, reports, **plain) for it in (toy_run(steps=4), run))
    lives = {"m0": 1, "m1": 1}
    begun = build_return(old, (("m0",), ("m1",)), lives, after="f", after_version=3, conductor="m0", continues=old.hash)
    one = dataclasses.replace(run, model=dataclasses.replace(run.model, stages=1))
    ended = build_end(new, lives, conductor="m0", why="it diverged")
    for name, record in (("old", old), ("new", new), ("begun", begun), ("ended", ended)):
        for stage in range(2):
            state = StageEngine(run, stage).export_state()
            save_stage(tmp_path / name, 3, stage, state, record.raw.decode(), 2)
        reshape([tmp_path / name], run, one, tmp_path / f"{name} in one", partial(cut_anew, run))
        found = load_stage(tmp_path / f"{name} in one", 0)
        assert found is not None
        cut = record_from_raw(one, raw_of(found.record))
        assert (cut.step, cut.total_steps, cut.after) == (3, record.total_steps, "")


def test_only_the_stages_may_differ(tmp_path: Path) -> None:
    run = toy_run(steps=1)
    wider = dataclasses.replace(run, model=dataclasses.replace(run.model, hidden=2 * run.model.hidden))
    with pytest.raises(ConfigError, match="another model"):
        reshape([tmp_path], run, wider, tmp_path, partial(cut_anew, run))
    shared = toy_run(shared=True)
    with pytest.raises(ConfigError, match="shares one block"):
        one = dataclasses.replace(shared, model=dataclasses.replace(shared.model, stages=1))
        reshape([tmp_path], shared, one, tmp_path, partial(cut_anew, shared))


@pytest.mark.parametrize(("number", "kept"), [(1, {"step": 2}), (2, RECORD)])
def test_manifests_of_older_formats_are_read(tmp_path: Path, number: int, kept: Any) -> None:
    path = save(tmp_path, 2)
    manifest = {**json.loads(path.read_text()), "format": number, "record": kept}
    del manifest["check"]
    path.write_text(json.dumps({**manifest, "check": _check(manifest)}))
    loaded = load_stage(tmp_path, 1)
    assert loaded is not None
    assert loaded.record == kept
    for other in (3, 3 - number, True, "2"):
        manifest["format"] = other
        path.write_text(json.dumps({**manifest, "check": _check(manifest)}))
        assert load_stage(tmp_path, 1) is None


def test_a_checkpoint_whose_record_is_none_can_not_be_cut_anew(tmp_path: Path) -> None:
    run = toy_run(steps=1)
    _, engines = train_pipeline(run)
    for engine in engines:
        save_stage(tmp_path, 1, engine.stage, engine.export_state(), RECORD, 2)
    one = dataclasses.replace(run, model=dataclasses.replace(run.model, stages=1))
    with pytest.raises(ConfigError, match="hold no record of their run"):
        reshape([tmp_path], run, one, tmp_path / "one", partial(cut_anew, run))


def test_a_checkpoint_has_the_root_of_its_state_also_where_an_older_release_wrote_none(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    manifest = json.loads(path.read_text())
    loaded = load_stage(tmp_path, 1)
    assert loaded is not None
    assert loaded.root == manifest["root"] == state_root(loaded.state)
    del manifest["root"], manifest["check"]
    path.write_text(json.dumps({**manifest, "check": checkpoint._check(manifest)}))
    assert load_stage(tmp_path, 1) == loaded
