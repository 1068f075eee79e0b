"""Settings of a run, from a preset, a TOML file or a peer, as a checked `RunConfig`; the check of a node's own.

Relies on pydantic for types, and on the dataclasses of `config.py` for names, defaults and what each setting may be.
Whatever is wrong becomes a `ConfigError` of one sentence that names the key and says what to do. Reads no data and
knows no device.
"""

import dataclasses
import difflib
import importlib.resources
import json
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from swarmd.config import LOCAL, CodecConfig, DataConfig, ModelConfig, NodeConfig, OptimizerConfig, RunConfig, to_plain
from swarmd.constraints import OUT_OF_RANGE, Range
from swarmd.errors import ConfigError
from swarmd.files import read_regular

SETTINGS_BYTES_LIMIT = 1 << 20  # bytes; a settings file is a page, so anything longer is the wrong file
MICROBATCHES_LIMIT = 1 << 15  # of a step: however full of gaps, each set of them fits a message
VALIDATION_LIMIT = 1 << 14  # microbatches: more would be training that teaches nothing
TOKENS_LIMIT = 1 << 62  # of a whole run: counted in 64 bits

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
    # Strict JSON mode takes lists for tuples and whole numbers for floats, and nothing else for what it isn't.
    try:
        run = _RUN.validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise ConfigError(_sentence(error, where)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(_strange(error, where)) from error
    for wrong, key, sentence in _problems(run):
        if wrong:
            raise ConfigError(f"{where}: {key} {sentence}.")
    return run


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
    """An equal run, if each of its settings may be what it is, and they fit together. Raises ConfigError."""
    return run_from_plain(to_plain(run), where)


def check_node(node: NodeConfig, names: Mapping[str, str]) -> None:
    """Checks that each number of a node's settings may be what it is. `names`: what a person calls a setting, such as
    `limits.stream_bytes`, where that isn't its own name. Raises ConfigError.
    """
    for prefix, table in (("", node), ("limits.", node.limits)):
        for name, hint in typing.get_type_hints(type(table), include_extras=True).items():
            if has_range(hint):
                key = names.get(prefix + name, prefix + name)
                try:
                    TypeAdapter(hint).validate_python(getattr(table, name), strict=True)
                except ValidationError as error:
                    raise ConfigError(f"{key} {_complaint(error.errors(include_url=False)[0])}.") from error


def has_range(hint: Any) -> bool:
    """True for the type of a number that says in which range it is, and for one that is made of such types."""
    return any(isinstance(it, Range) for it in getattr(hint, "__metadata__", ())) or any(
        map(has_range, typing.get_args(hint))
    )


def _problems(run: RunConfig) -> Iterator[Problem]:
    """The demands on several settings together, each of which may be what it is."""
    yield from _step_problems(run)
    yield from _model_problems(run.model)
    yield from _data_problems(run)
    yield (
        run.optimizer.warmup_steps > max(run.totals),
        "optimizer.warmup_steps",
        f"is {run.optimizer.warmup_steps}, but must be from 0 to steps = {max(run.totals)}",
    )


def _step_problems(run: RunConfig) -> Iterator[Problem]:
    batch, micro = run.sequences_per_step, run.sequences_per_microbatch
    yield (
        batch % micro != 0,
        "sequences_per_step",
        f"is {batch}, which sequences_per_microbatch = {micro} does not divide; change one of them",
    )
    yield (
        batch // micro > MICROBATCHES_LIMIT,
        "sequences_per_step",
        f"is {batch}, but a step has {MICROBATCHES_LIMIT} microbatches at most; raise sequences_per_microbatch",
    )
    yield (
        run.validate_every > 0 and not 1 <= run.validation_microbatches <= VALIDATION_LIMIT,
        "validation_microbatches",
        f"is {run.validation_microbatches}, but must be from 1 to {VALIDATION_LIMIT}, or set validate_every = 0",
    )
    yield (
        run.steps * batch * run.model.sequence_length > TOKENS_LIMIT,
        "steps",
        f"is {run.steps}, which makes more tokens than can be counted; give fewer",
    )


def _model_problems(model: ModelConfig) -> Iterator[Problem]:
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


def _data_problems(run: RunConfig) -> Iterator[Problem]:
    data = run.data
    yield data.source == "hf:", "data.source", "must name a dataset after hf:, such as hf:owner/name"
    for key, named in (("tokens_digest", data.source), ("tokenizer_digest", data.tokenizer)):
        wrong = getattr(data, key) != "" and named != LOCAL
        yield wrong, f"data.{key}", "belongs to files of the founder's own; leave it out"
    yield (
        data.tokenizer == "byte" and run.model.vocabulary < 256,
        "model.vocabulary",
        f"is {run.model.vocabulary}, but data.tokenizer = byte needs 256",
    )
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
    if first["type"] == "json_invalid":  # half a character, or lists in lists in lists
        return _strange(first["ctx"]["error"], where)
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and "literal[" not in part) or "settings"
    for kind in ("bool", "int", "float", "str"):
        key = key.removesuffix(f".{kind}")
    if first["type"] == "missing":
        what = "needs more values; give all" if isinstance(first["loc"][-1], int) else "is missing; add it"
        return f"{where}: {key} {what}."
    return f"{where}: {key} {_complaint(first)}."


def _complaint(problem: Mapping[str, Any]) -> str:
    """The rest of a sentence that begins with a value's name: the value, and what it must be."""
    message = problem["msg"].replace("Input should", "must").rstrip(".")
    words = f"must be {message}" if problem["type"] == OUT_OF_RANGE else message
    return f"is {problem['input']!r:.60}, but {words}"


def _strange(what: object, where: str) -> str:
    return f"{where} hold a value that no setting can have ({what}); use numbers, text and lists."
