"""Settings: presets load, and whatever is wrong with others is one sentence that names the key."""

import dataclasses
import importlib.resources
import json
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.config import (
    FOUNDING,
    LimitsConfig,
    ModelConfig,
    NodeConfig,
    OptimizerConfig,
    RunConfig,
    fingerprint,
    lineage,
    prolonged,
    to_plain,
)
from swarmd.constraints import BOUNDS, Range
from swarmd.errors import ConfigError
from swarmd.schedule import learning_rate_at
from swarmd.settings import check_node, has_range, load_run, preset_names, run_from_plain, with_overrides

PRESETS = ("125m", "13b-shared", "1b", "tiny")
MODEL = "[model]\nvocabulary=256\nhidden=32\nffn=64\nheads=2\nlayers=4\nstages=2\nsequence_length=16\n"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_survive_the_wire(name: str) -> None:
    run = load_run(name)
    assert run.name == name
    sent = json.loads(json.dumps(to_plain(run)))
    assert run_from_plain(sent) == run
    assert fingerprint(run_from_plain(sent)) == fingerprint(run)


def test_a_prolonged_run_knows_what_it_was_called_before() -> None:
    run = load_run("tiny")
    once = prolonged(run, run.steps + 10)
    twice = prolonged(once, run.steps + 5)
    assert twice.totals == (run.steps, run.steps + 10, run.steps + 5)
    assert prolonged(twice, twice.steps) == twice
    assert lineage(twice) == (fingerprint(run), fingerprint(once), fingerprint(twice))
    assert run_from_plain(to_plain(twice)) == twice


def test_what_the_first_release_wrote_keeps_its_fingerprint() -> None:
    """The fingerprint that commit 849cc63 gave."""
    assert fingerprint(OLD) == "754960a8091ca706"


OLD = RunConfig("old", ModelConfig(256, 8, 16, 2, 2, 2, 16))


@dataclasses.dataclass(frozen=True)
class LaterTable:
    """A table of settings that the next release may have."""

    window: int = 7


@dataclasses.dataclass(frozen=True)
class LaterModel(ModelConfig):
    """A model with a setting more."""

    bias: bool = False


@dataclasses.dataclass(frozen=True)
class LaterRun(RunConfig):
    """A run of a later release, with a setting and a table more."""

    patience: tuple[int, ...] = (1, 2)
    later: LaterTable = dataclasses.field(default_factory=LaterTable)


def later(**changes: Any) -> LaterRun:
    model = LaterModel(**dataclasses.asdict(OLD.model), bias=changes.pop("bias", False))
    return LaterRun("old", model, **changes)


def test_the_settings_of_a_later_release_keep_the_fingerprint_where_they_have_their_defaults() -> None:
    assert fingerprint(later()) == fingerprint(OLD)
    changed = [later(patience=(1,)), later(later=LaterTable(8)), later(bias=True), later(skips_limit=3)]
    assert len({fingerprint(run) for run in (OLD, *changed)}) == 5


def test_every_setting_of_the_first_release_is_in_the_fingerprint_whatever_its_value() -> None:
    plain = to_plain(OLD)
    paths = {f"{key}.{name}" for key, table in plain.items() if isinstance(table, dict) for name in table}
    paths |= {key for key, value in plain.items() if not isinstance(value, dict)}
    later_ones = {"earlier", "precision", "skips_limit", "data.tokens_digest", "data.tokenizer_digest"}
    assert paths - FOUNDING == later_ones
    assert paths >= FOUNDING


@pytest.mark.parametrize("earlier", [[0], [-5], [1 << 41], [10] * 65, ["10"], 10, [1.5]])
def test_earlier_totals_that_can_not_be(earlier: object) -> None:
    with pytest.raises(ConfigError, match="earlier"):
        run_from_plain({**to_plain(load_run("tiny")), "earlier": earlier})


def test_every_preset_is_known_and_none_else() -> None:
    assert preset_names() == PRESETS


def test_every_value_of_a_preset_has_its_reason() -> None:
    for name in PRESETS:
        text = importlib.resources.files("configs").joinpath(f"{name}.toml").read_text()
        values = [line for line in text.splitlines() if "=" in line.split("#")[0]]
        unexplained = [line for line in values if "#" not in line and not line.startswith("name =")]
        assert not unexplained, name


def test_13b_shared_has_the_papers_settings() -> None:
    run = load_run("13b-shared")
    assert (run.model.hidden, run.model.ffn, run.model.heads, run.model.sequence_length) == (4096, 16384, 32, 2048)
    assert (run.model.layers, run.model.stages, run.model.shared, run.model.vocabulary) == (48, 3, True, 50304)
    assert (run.steps, run.sequences_per_step, run.sequences_per_microbatch) == (15_000, 4096, 1)
    assert run.optimizer == OptimizerConfig("lamb", 0.00353553, (0.9, 0.999), 1e-6, 0.01, 1.0, 3125, "linear", 0.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "name is missing; add it"),
        ('name="x"', "model is missing; add it"),
        (f'name="x"\nstep=3\n{MODEL}', "step is not a setting; did you mean steps?"),
        (f'name="x"\n{MODEL}hiden=3\n', "model.hiden is not a setting; did you mean model.hidden?"),
        (f'name="x"\n{MODEL}\n[optimizer]\nlr=3\n', "optimizer.lr is not a setting; known are"),
        (f'name="x"\n{MODEL}\n[optimiser]\n', "did you mean optimizer?"),
        (f'name="x"\nsteps="many"\n{MODEL}', "steps is 'many', but must be a whole number, at least 1"),
        (f'name="x"\nsteps=1.5\n{MODEL}', "steps is 1.5, but must be a whole number, at least 1"),
        (f'name="x"\nsteps=true\n{MODEL}', "steps is True, but must be a whole number, at least 1"),
        (f'name="x"\nrecompute="maybe"\n{MODEL}', "recompute is 'maybe', but"),
        (f'name="x"\nrouting="fastest"\n{MODEL}', "routing is 'fastest', but"),
        (f'name="x"\n{MODEL}shared="yes"\n', "model.shared is 'yes', but must be a valid boolean"),
        (f'name="x"\n{MODEL}\n[optimizer]\nname="sgd"\n', "optimizer.name is 'sgd', but must be 'adamw', 'lamb'"),
        (f'name="x"\n{MODEL}\n[optimizer]\nbetas=[0.9]\n', "optimizer.betas needs more values"),
        (
            f'name="x"\n{MODEL}\n[optimizer]\nbetas=[0.9, 1.0]\n',
            "optimizer.betas is 1.0, but must be a number, at least 0 and under 1",
        ),
        (f'name="x"\n{MODEL}\n[optimizer]\nlearning_rate=nan\n', "optimizer.learning_rate"),
        (f'name="x"\n{MODEL}\n[optimizer]\nwarmup_steps=1001\n', "optimizer.warmup_steps is 1001, but must be from 0"),
        (f'name="x"\n{MODEL}\n[codecs]\naveraging="int4"\n', "codecs.averaging is 'int4', but must be 'fp32'"),
        (f'name="x"\nstarted=2026-11-21\n{MODEL}', "started is not a setting"),
        (f'name="x"\nsteps=2026-11-21\n{MODEL}', "hold a value that no setting can have"),
        (f'name="x"\nsteps=0\n{MODEL}', "steps is 0, but must be a whole number, at least 1 and at most 1099511627776"),
        (f'name="x"\nseed=-1\n{MODEL}', "seed is -1"),
        (f'name="x"\nskips_limit=-1\n{MODEL}', "and at most 1099511627776; 0 never ends the run."),
        (f'name="x\\u0007"\n{MODEL}', "must be 1 to 64 printable characters"),
        (
            f'name="x"\n{MODEL}norm_eps=1.0\n',
            "model.norm_eps is 1.0, but must be a number, over 0 and under 1; usually",
        ),
        (f'name="x"\n{MODEL}\n[data]\ntokens_digest="x"\n', "data.tokens_digest is 'x', but must be 32 hexadecimal"),
        (f'name="x"\nvalidation_microbatches=0\n{MODEL}', "validation_microbatches is 0, but must be from 1 to 16384"),
        (
            f'name="x"\nsequences_per_step=7\n{MODEL}',
            "sequences_per_step is 7, which sequences_per_microbatch = 4 does",
        ),
        (
            f'name="x"\nsequences_per_step=65536\nsequences_per_microbatch=1\n{MODEL}',
            "sequences_per_step is 65536, but a step has 32768 microbatches at most; raise sequences_per_microbatch",
        ),
        (f'name=""\n{MODEL}', "name is '', but must be 1 to 64 printable characters"),
        (f'name="x"\n{MODEL.replace("layers=4", "layers=5")}', "model.layers is 5, which can't be cut into 2 equal"),
        (f'name="x"\n{MODEL.replace("heads=2", "heads=3")}', "model.hidden is 32, but must be an even multiple"),
        (f'name="x"\n{MODEL.replace("heads=2", "heads=32")}', "model.hidden is 32, but must be an even multiple"),
        (
            f'name="x"\n{MODEL.replace("heads=2", "heads=0")}',
            "model.heads is 0, but must be a whole number, at least 1",
        ),
        (
            f'name="x"\n{MODEL.replace("stages=2", "stages=0")}',
            "model.stages is 0, but must be a whole number, at least 1",
        ),
        (f'name="x"\n{MODEL.replace("vocabulary=256", "vocabulary=99")}', "model.vocabulary is 99, but data.tokenizer"),
        (f'name="x"\n{MODEL}\n[data]\nheld_out=0.0\n', "data.held_out is 0, but validation needs some"),
        (f'name="x"\n{MODEL}\n[data]\nsource=""\n', "data.source is '', but must be 1 to 4096 characters"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_the_key(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_run(str(path))
    message = str(raised.value)
    assert complaint in message
    assert str(path) in message
    assert "\n" not in message


def declared(table: type = RunConfig, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The type of each setting by its path, with what it may be."""
    for name, hint in typing.get_type_hints(table, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from declared(hint, (*path, name))  # type: ignore[arg-type]
        else:
            yield (*path, name), hint


@pytest.mark.parametrize("table", [NodeConfig, LimitsConfig])
def test_every_number_of_a_node_has_its_range_and_its_default_is_in_it(table: type) -> None:
    numbers = {path: hint for path, hint in declared(table) if "int" in str(hint) or "float" in str(hint)}
    assert numbers
    for path, hint in numbers.items():
        assert has_range(hint), path
    check_node(NodeConfig("/h"), {})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"threads": -1}, "--threads is -1, but must be a whole number, at least 0 and at most 4096."),
        ({"drain_s": 0.0}, "drain_s is 0.0, but must be a number, at least 0.1 and at most 1000000000.0."),
        ({"drain_s": math.inf}, "drain_s is inf, but must be a number"),
        ({"wait_s": math.nan}, "wait_s is nan, but must be a number"),
        ({"stage": 1 << 40}, "stage is 1099511627776, but must be a whole number, at least 0 and under 4096."),
        (
            {"limits": LimitsConfig(held_gradients=0)},
            "limits.held_gradients is 0, but must be a whole number, at least 1",
        ),
    ],
)
def test_a_node_s_number_that_is_out_of_its_range_is_refused_by_what_a_person_calls_it(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        check_node(NodeConfig("/h", **changes), {"threads": "--threads"})
    assert str(raised.value).startswith(complaint)


def test_every_number_and_text_of_a_run_has_its_range() -> None:
    for path, hint in declared():
        for part in typing.get_args(hint) if typing.get_origin(hint) is tuple else (hint,):
            assert part not in (int, float, str), path


RANGES = {path: it for path, hint in declared() for it in getattr(hint, "__metadata__", ()) if isinstance(it, Range)}


@pytest.mark.parametrize("path", RANGES, ids=".".join)
def test_a_number_just_out_of_its_range_is_refused_with_the_range(path: tuple[str, ...]) -> None:
    allowed = RANGES[path]
    low, high = [bound for name in BOUNDS if (bound := getattr(allowed, name)) is not None]
    below = low if allowed.gt is not None else low - 1
    above = high if allowed.lt is not None else high + 1 if isinstance(high, int) else math.nextafter(high, math.inf)
    for value in (below, above, math.nan):
        plain = to_plain(load_run("tiny"))
        table = plain[path[0]] if len(path) > 1 else plain
        table[path[-1]] = value
        with pytest.raises(
            ConfigError, match=rf"^the settings: {'.'.join(path)} is .*, but must be a .*number, "
        ) as raised:
            run_from_plain(plain)
        assert f" {low} and " in str(raised.value)
        assert f" {high}" in str(raised.value)


def test_text_that_is_no_unicode_is_refused() -> None:
    """A file's name may be, as Python reads it from a command line."""
    with pytest.raises(ConfigError, match="hold a value that no setting can have"):
        with_overrides(load_run("tiny"), data="/data/\udcff")


def test_a_good_file_loads_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f'name = "mine"\n{MODEL}\n[optimizer]\nlearning_rate = 1\n')
    run = load_run(str(path))
    assert run.optimizer == OptimizerConfig(learning_rate=1.0)
    assert isinstance(run.optimizer.learning_rate, float)
    assert run.microbatches == 16


@pytest.mark.parametrize(("name", "hint"), [("tinny", "did you mean tiny?"), ("nothing/here.toml", "presets are 125m")])
def test_an_unknown_preset_lists_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"125m, 13b-shared, 1b, tiny") as raised:
        load_run(name)
    assert hint in str(raised.value)


def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff\xfe" * 100)
    with pytest.raises(ConfigError, match="can't be read as a TOML settings file"):
        load_run(str(path))
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="longer than 1048576 bytes"):
        load_run(str(path))


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*to_plain(load_run("tiny")), "strange"]), plain_values, max_size=4))
def test_settings_from_a_stranger_never_do_worse_than_a_config_error(changes: dict[str, Any]) -> None:
    plain = {**to_plain(load_run("tiny")), **changes}
    try:
        run = run_from_plain(plain)
    except ConfigError:
        return
    assert run.microbatches >= 1


def test_overrides_are_checked_and_change_the_fingerprint() -> None:
    tiny = load_run("tiny")
    changed = with_overrides(tiny, steps=2, stages=1, data="text.txt")
    assert (changed.steps, changed.model.stages, changed.data.source) == (2, 1, "text.txt")
    assert changed.optimizer.warmup_steps <= 2
    assert fingerprint(changed) != fingerprint(tiny)
    assert with_overrides(tiny) == tiny
    with pytest.raises(ConfigError, match=r"model\.layers"):
        with_overrides(tiny, stages=100)
    with pytest.raises(ConfigError, match="steps is 0"):
        with_overrides(tiny, steps=0)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [0.5, 1.0, 0.8682, 0.55, 0.2318, 0.1]),
    ],
)
def test_the_learning_rate_warms_up_and_decays_to_its_last_step(decay: Any, expected: list[float]) -> None:
    optimizer = OptimizerConfig(learning_rate=2.0, warmup_steps=2, decay=decay, final_fraction=0.1)
    rates = [learning_rate_at(optimizer, step, 6) / 2.0 for step in range(1, 7)]
    assert rates == pytest.approx(expected, abs=1e-4)
    assert learning_rate_at(optimizer, 60, 6) == pytest.approx(rates[-1] * 2.0)
    everything = dataclasses.replace(optimizer, warmup_steps=6)
    assert learning_rate_at(everything, 6, 6) == 2.0
