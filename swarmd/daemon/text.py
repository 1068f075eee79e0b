"""The places of a run's text and tokenizer: those that this machine's user named, or that settings may name.

A run's settings come from strangers. Of the sources that they name only those are followed that every machine may read
(`DataConfig.has_open_source`); a path is followed only if this machine's user gave it, now or in an earlier life. So a
run that is founded on files of its founder's names them by digests, and the paths stay in the founder's home.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarmd.config import LOCAL, DataConfig, LimitsConfig, RunConfig, lineage
from swarmd.daemon.home import Home
from swarmd.daemon.remembered import RememberedRun
from swarmd.errors import ConfigError
from swarmd.files import as_meant
from swarmd.settings import run_from_plain

if TYPE_CHECKING:
    from swarmd.text.data import RunData
    from swarmd.text.reading import Reading  # which takes a while to import: a mistake is told at once


@dataclass(frozen=True)
class LocalText:
    """The text and tokenizer as this machine's user named them."""

    source: str | None = None
    tokenizer: str | None = None

    def lacking(self, data: DataConfig) -> str:
        """The options that its user must give for this daemon to be a head, one sentence; "" if it may be one."""
        options = ["--data SOURCE"] * (self.source is None and not data.has_open_source)
        options += ["--tokenizer FILE"] * (self.tokenizer is None and not data.has_open_tokenizer)
        if not options:
            return ""
        what = "text" if len(options) > 1 or options[0].startswith("--data") else "tokenizer"
        return (
            f"the run's {what} is not one that its settings may name: {' and '.join(options)} makes this daemon a head"
        )

    def absolute(self) -> "LocalText":
        """The same for a later life, which may begin in another directory."""
        return LocalText(_absolute(self.source), _absolute(self.tokenizer))


def _absolute(name: str | None) -> str | None:
    if name is None or name == "stdlib" or name.startswith("hf:"):
        return name
    return str(as_meant(name).absolute())  # `..` stays: behind a link it leads elsewhere


def take_local(run: RunConfig) -> tuple[RunConfig, LocalText]:
    """Parts what only this machine's user can name from settings that the user wrote. What is left travels, once
    `with_digests` has added what it was. Raises ConfigError.
    """
    data = run.data
    if data.tokens_digest or data.tokenizer_digest:
        raise ConfigError("data.tokens_digest and data.tokenizer_digest are found out; leave them out of the settings.")
    if data.source.startswith("hf:") and not data.has_open_source:
        raise ConfigError(f"data.source {data.source} lacks its owner; name it hf:owner/name or hf:owner/name:subset.")
    local = LocalText(
        None if data.has_open_source else data.source, None if data.has_open_tokenizer else data.tokenizer
    )
    data = dataclasses.replace(
        data,
        source=data.source if local.source is None else LOCAL,
        tokenizer=data.tokenizer if local.tokenizer is None else LOCAL,
    )
    return dataclasses.replace(run, data=data), local


def is_finished(data: DataConfig) -> bool:
    """True if settings name everything that they must for the run to be founded."""
    return (data.source != LOCAL or data.tokens_digest != "") and (
        data.tokenizer != LOCAL or data.tokenizer_digest != ""
    )


def as_first_release(run: RunConfig, local: LocalText) -> RunConfig:
    """The run as the first release named it, which had its founder's paths in its settings."""
    data = dataclasses.replace(
        run.data, source=local.source or run.data.source, tokenizer=local.tokenizer or run.data.tokenizer
    )
    return dataclasses.replace(run, data=data)


def as_known(written: RunConfig, home: Home) -> RunConfig:
    """Settings that the user wrote, as the run of this home has them: without reading the text once more. Whether it is
    still the same shows when it is read. Raises ConfigError.
    """
    run, _ = take_local(written)
    known = home.remembered_run()
    if known is None or is_finished(run.data) or not home.is_checkpointed(known):
        return run
    data = run_from_plain(known.run, f"the settings in {home.run_file}").data
    if (data.source, data.tokenizer) == (written.data.source, written.data.tokenizer):
        return written  # of the first release, which had the paths in its settings
    data = dataclasses.replace(
        run.data,
        tokens_digest=data.tokens_digest if run.data.source == LOCAL else "",
        tokenizer_digest=data.tokenizer_digest if run.data.tokenizer == LOCAL else "",
    )
    return dataclasses.replace(run, data=data)


def with_digests(
    run: RunConfig, local: LocalText, cache: Path, progress: "Callable[[Reading], None] | None" = None
) -> RunConfig:
    """The run as it travels: with the digests of its founder's own files, which are tokenised for that. Blocks, perhaps
    for minutes. Raises ConfigError.
    """
    from swarmd.text.data import load_data
    from swarmd.text.tokenizer import tokenizer_digest

    data, local = run.data, local.absolute()
    if data.tokenizer == LOCAL and local.tokenizer is not None:
        data = dataclasses.replace(data, tokenizer_digest=tokenizer_digest(local.tokenizer))
    if data.source == LOCAL and local.source is not None:
        loaded = load_data(run, local.source, local.tokenizer, cache_directory=cache, progress=progress)
        data = dataclasses.replace(data, tokens_digest=loaded.digest)
    return dataclasses.replace(run, data=data)


def load_text(
    run: RunConfig,
    local: LocalText,
    cache: Path,
    limits: LimitsConfig,
    *,
    begun: bool = False,
    progress: "Callable[[Reading], None] | None" = None,
) -> "RunData":
    """This daemon's copy of the run's text. `begun`: the run has trained on what is in the cache. Blocks, perhaps for
    minutes. Raises ConfigError.
    """
    from swarmd.text.data import load_data

    if lacking := local.lacking(run.data):
        raise ConfigError(f"{lacking}.")
    if local.tokenizer is not None and run.data.has_open_tokenizer:
        raise ConfigError("the run's tokens are bytes; leave --tokenizer out.")
    local = local.absolute()  # so that a later life, which knows it so, finds the tokens that this one makes
    return load_data(
        run,
        local.source,
        local.tokenizer,
        cache_directory=cache,
        begun=begun,
        progress=progress,
        limit_bytes=limits.stream_bytes,
    )


def remembered_text(known: RememberedRun | None, run: RunConfig, cache: Path) -> LocalText:
    """The text as the user named it in an earlier life of this home in this run.

    The first release followed whatever a run named, and wrote down nothing else. Its homes go on with a path only where
    they have read it for this very run before, and the files haven't changed since: nothing new gets out.
    """
    from swarmd.text.tokens import find_tokens

    if known is None or known.fingerprint not in lineage(run):
        return LocalText()
    if known.data is not None:
        return LocalText(known.data or None, known.tokenizer or None)
    was_head = known.stage == 0 and not run.data.has_open_source and run.data.source != LOCAL
    if was_head and find_tokens(run.data, run.model.vocabulary, cache):
        return LocalText(run.data.source, None if run.data.has_open_tokenizer else run.data.tokenizer)
    return LocalText()
