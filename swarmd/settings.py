"""Settings of a run, from a preset, a TOML file or a peer, as a checked `RunConfig`.

Relies on pydantic for types and on the dataclasses of `config.py` for names and defaults. Whatever is wrong becomes a
`ConfigError` of one sentence that names the key and says what to do. Reads no data and knows no device.
"""

import dataclasses
import difflib
import importlib.resources
import itertools
import json
import math
import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from swarmd.config import LOCAL, CodecConfig, DataConfig, ModelConfig, OptimizerConfig, RunConfig
from swarmd.errors import ConfigError
from swarmd.files import read_regular

SETTINGS_BYTES_LIMIT = 1 << 20  # bytes; a settings file is a page, so anything longer is the wrong file
SIZE_LIMIT = 1 << 20  # of any one dimension; keeps a stranger's settings from asking for absurd allocations
RATE_LIMIT = 1e30  # of learning; more, times the decay, is no number of fp32
LAYERS_LIMIT = 1 << 14  # a hundred times those of the deepest models; each is objects of Python in every peer
STAGES_LIMIT = 1 << 12  # everyone counts over all of them again and again
MICROBATCHES_LIMIT = 1 << 15  # of a step: however full of gaps, each set of them fits a message
VALIDATION_LIMIT = 1 << 14  # microbatches: more would be training that teaches nothing
TOKENS_LIMIT = 1 << 62  # of a whole run: counted in 64 bits
COUNT_LIMIT = 1 << 40  # steps, seeds and sequences fit an exact float and an int64 product

EARLIER_LIMIT = 64  # times that a run is prolonged; the fingerprint of each is worked out wherever somebody joins

DIGEST = re.compile("[0-9a-f]{32}")  # blake2b of 16 bytes

_RUN = TypeAdapter(RunConfig)

Problem = tuple[bool, str, str]
"""A check: true if it fails, the key, and the rest of the sentence."""


def preset_names() -> tuple[str, ...]:
    """The presets that come with the package, sorted."""
    folder = importlib.resources.files("configs")
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def load_run(model: str) -> RunConfig:
    """The run that `--model` names: a preset (`tiny`) or the path of a TOML file. Raises ConfigError."""
    if model in preset_names():
        text = importlib.resources.files("configs").joinpath(f"{model}.toml").read_text(encoding="utf-8")
        return run_from_toml(text, f"preset {model}")
    path = Path(model)
    try:
        return run_from_toml(read_regular(path, SETTINGS_BYTES_LIMIT).decode(), str(path))
    except FileNotFoundError as error:
        near = difflib.get_close_matches(model, preset_names(), n=1)
        hint = f"did you mean {near[0]}? Presets are" if near else "presets are"
        raise ConfigError(f"no preset or file is called {model}; {hint} {', '.join(preset_names())}.") from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"{path} can't be read as a TOML settings file ({why}); give one like those in configs/."
        ) from error


def run_from_toml(text: str, where: str) -> RunConfig:
    """Settings from TOML text; `where` names the file in errors."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML ({error}); correct that line.") from error
    except RecursionError as error:
        raise ConfigError(
            f"{where} is nested too deeply for a settings file; give one like those in configs/."
        ) from error
    return run_from_plain(plain, where)


def run_from_plain(plain: dict[str, Any], where: str = "the settings") -> RunConfig:
    """Settings from plain data, as `config.to_plain` gives and as a peer sends. Raises ConfigError."""
    if not isinstance(plain, dict):
        raise ConfigError(f"{where} must be a table of settings, not {type(plain).__name__}.")
    _check_keys(plain, RunConfig, where, "")
    try:
        # Strict JSON mode takes lists for tuples and whole numbers for floats, and nothing else for what it isn't.
        run = _RUN.validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise ConfigError(_sentence(error, where)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} hold a value that no setting can have ({error}); use numbers, text and lists."
        ) from error
    return check_run(run, where)


def with_overrides(
    run: RunConfig,
    *,
    steps: int | None = None,
    stages: int | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
) -> RunConfig:
    """The run with what the command line changes, checked again. The fingerprint changes with it."""
    if stages is not None:
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, stages=stages))
    if data is not None:
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, source=data))
    if tokenizer is not None:
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, tokenizer=tokenizer))
    if steps is not None:
        warmup = min(run.optimizer.warmup_steps, steps)  # a shortened run must not consist of more warm-up than steps
        run = dataclasses.replace(run, steps=steps, optimizer=dataclasses.replace(run.optimizer, warmup_steps=warmup))
    return check_run(run, f"run {run.name}")


def check_run(run: RunConfig, where: str) -> RunConfig:
    """The run itself if its settings fit together. Raises ConfigError with the first that doesn't."""
    # One by one, because later problems divide by what earlier ones find to be zero.
    problems = (_run_problems(run), _model_problems(run.model), _optimizer_problems(run), _data_problems(run))
    for wrong, key, sentence in itertools.chain(*problems):
        if wrong:
            raise ConfigError(f"{where}: {key} {sentence}.")
    return run


def _run_problems(run: RunConfig) -> Iterator[Problem]:
    batch, micro = run.sequences_per_step, run.sequences_per_microbatch
    yield not 0 < len(run.name) <= 64 or not run.name.isprintable(), "name", "must be 1 to 64 printable characters"
    yield not 1 <= run.steps <= COUNT_LIMIT, "steps", f"is {run.steps}, but must be at least 1"
    yield (
        len(run.earlier) > EARLIER_LIMIT or not all(1 <= steps <= COUNT_LIMIT for steps in run.earlier),
        "earlier",
        f"must be at most {EARLIER_LIMIT} totals of steps, each at least 1; a run can't be prolonged more often",
    )
    yield not 1 <= micro <= SIZE_LIMIT, "sequences_per_microbatch", f"is {micro}, but must be at least 1"
    yield not 1 <= batch <= SIZE_LIMIT, "sequences_per_step", f"is {batch}, but must be at least 1"
    yield (
        micro > 0 and batch % micro != 0,
        "sequences_per_step",
        f"is {batch}, which sequences_per_microbatch = {micro} does not divide; change one of them",
    )
    yield (
        micro > 0 and batch // micro > MICROBATCHES_LIMIT,
        "sequences_per_step",
        f"is {batch}, but a step has {MICROBATCHES_LIMIT} microbatches at most; raise sequences_per_microbatch",
    )
    yield not 0 <= run.seed < COUNT_LIMIT, "seed", f"is {run.seed}, but must be from 0 to {COUNT_LIMIT - 1}"
    yield not 0 <= run.validate_every <= COUNT_LIMIT, "validate_every", "must be 0 (never) or a number of steps"
    yield (
        run.validate_every > 0 and not 1 <= run.validation_microbatches <= VALIDATION_LIMIT,
        "validation_microbatches",
        f"must be from 1 to {VALIDATION_LIMIT}, or set validate_every = 0",
    )
    yield (
        run.steps * batch * run.model.sequence_length > TOKENS_LIMIT,
        "steps",
        f"is {run.steps}, which makes more tokens than can be counted; give fewer",
    )
    yield (
        not 0 <= run.rebalance_seconds <= SIZE_LIMIT,
        "rebalance_seconds",
        "must be 0 (never) or a number of seconds",
    )
    yield not 0 <= run.skips_limit <= COUNT_LIMIT, "skips_limit", "must be 0 (never ends the run) or a number of steps"
    yield not 1 <= run.checkpoint_every <= COUNT_LIMIT, "checkpoint_every", "must be a number of steps, at least 1"


def _model_problems(model: ModelConfig) -> Iterator[Problem]:
    for key in ("vocabulary", "hidden", "ffn", "heads", "layers", "stages", "sequence_length"):
        value = getattr(model, key)
        yield (
            not 1 <= value <= SIZE_LIMIT,
            f"model.{key}",
            f"is {value}, but must be from 1 to {SIZE_LIMIT}",
        )
    for key, limit in (("layers", LAYERS_LIMIT), ("stages", STAGES_LIMIT)):
        value = getattr(model, key)
        yield value > limit, f"model.{key}", f"is {value}, but must be from 1 to {limit}"
    yield (
        model.layers % model.stages != 0,
        "model.layers",
        f"is {model.layers}, which can't be cut into {model.stages} equal stages; choose stages that divide it",
    )
    yield (
        model.hidden % model.heads != 0 or (model.hidden // model.heads) % 2 != 0,
        "model.hidden",
        f"is {model.hidden}, but must be an even multiple of model.heads = {model.heads} for rotary embeddings",
    )
    yield model.vocabulary < 2, "model.vocabulary", "must be at least 2"
    yield not 1.0 < model.rope_theta < 1e12, "model.rope_theta", "must be over 1, usually 10000.0"
    yield not 0.0 < model.norm_eps < 1.0, "model.norm_eps", "must be a small positive number, usually 1e-5"
    yield not 0.0 < model.init_std < 10.0, "model.init_std", "must be a small positive number, usually 0.02"


def _optimizer_problems(run: RunConfig) -> Iterator[Problem]:
    optimizer = run.optimizer
    rate = optimizer.learning_rate
    yield not 0 < rate <= RATE_LIMIT, "optimizer.learning_rate", f"is {rate}, but must be positive, up to {RATE_LIMIT}"
    yield not all(0.0 <= beta < 1.0 for beta in optimizer.betas), "optimizer.betas", "must be two numbers in [0, 1)"
    yield not 0.0 < optimizer.eps < 1.0, "optimizer.eps", "must be a small positive number, usually 1e-8"
    yield not 0.0 <= optimizer.weight_decay < 10.0, "optimizer.weight_decay", "must be 0 or a small positive number"
    clip = optimizer.clip_norm
    yield not (math.isfinite(clip) and clip >= 0), "optimizer.clip_norm", "must be positive, or 0 to turn clipping off"
    yield (
        not 0 <= optimizer.warmup_steps <= max(run.totals),
        "optimizer.warmup_steps",
        f"is {optimizer.warmup_steps}, but must be from 0 to steps = {max(run.totals)}",
    )
    yield not 0.0 <= optimizer.final_fraction <= 1.0, "optimizer.final_fraction", "must be from 0 to 1"


def _data_problems(run: RunConfig) -> Iterator[Problem]:
    data = run.data
    for key in ("source", "tokenizer", "text_field"):
        value = getattr(data, key)
        yield not 0 < len(value) <= 4096, f"data.{key}", "must not be empty"
        yield "\0" in value, f"data.{key}", "holds a zero byte, which no name has"
    yield data.source == "hf:", "data.source", "must name a dataset after hf:, such as hf:owner/name"
    for key, named in (("tokens_digest", data.source), ("tokenizer_digest", data.tokenizer)):
        value = getattr(data, key)
        yield value != "" and not DIGEST.fullmatch(value), f"data.{key}", "must be 32 hexadecimal digits, or empty"
        yield value != "" and named != LOCAL, f"data.{key}", "belongs to files of the founder's own; leave it out"
    yield (
        data.tokenizer == "byte" and run.model.vocabulary < 256,
        "model.vocabulary",
        f"is {run.model.vocabulary}, but data.tokenizer = byte needs 256",
    )
    yield not 0.0 <= data.held_out < 1.0, "data.held_out", "must be a fraction from 0 up to, but not including, 1"
    yield (
        run.validate_every > 0 and data.held_out == 0.0,
        "data.held_out",
        "is 0, but validation needs some; raise it or set validate_every = 0",
    )


def _check_keys(plain: dict[str, Any], kind: type, where: str, prefix: str) -> None:
    """Refuses keys that no setting has, at any depth, with the nearest name that one has."""
    sections: dict[str, type] = {
        "model": ModelConfig,
        "data": DataConfig,
        "optimizer": OptimizerConfig,
        "codecs": CodecConfig,
    }
    known = tuple(typing.get_type_hints(kind))
    for key, value in plain.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            advice = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}."
            raise ConfigError(f"{where}: {prefix}{key} is not a setting; {advice}")
        if not prefix and key in sections and isinstance(value, dict):
            _check_keys(value, sections[key], where, f"{key}.")


def _sentence(error: ValidationError, where: str) -> str:
    """The first of pydantic's complaints, in our words."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and "literal[" not in part) or "settings"
    for kind in ("bool", "int", "float", "str"):
        key = key.removesuffix(f".{kind}")
    if first["type"] == "missing":
        what = "needs more values; give all" if isinstance(first["loc"][-1], int) else "is missing; add it"
        return f"{where}: {key} {what}."
    return f"{where}: {key} is {first['input']!r:.60}, but {_expectation(first['msg'])}."


def _expectation(message: str) -> str:
    return message.replace("Input should", "must").rstrip(".")
