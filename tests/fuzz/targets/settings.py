"""Settings of a run: the text of a file, or plain data as a peer sends it.

A case is a text, or [text or tree of the settings].
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Iterator
from typing import Any

from swarmd.config import fingerprint, to_plain
from swarmd.errors import ConfigError
from swarmd.settings import preset_names, run_from_plain, run_from_toml, with_overrides
from tests.fuzz.parts import check_sentence
from tests.fuzz.target import Finding, Target
from tests.swarm.records import RUN


class Settings(Target):
    """Reading settings."""

    def seeds(self) -> Iterator[Any]:
        folder = importlib.resources.files("configs")
        yield from (folder.joinpath(f"{name}.toml").read_text(encoding="utf-8") for name in preset_names())
        yield [json.loads(json.dumps(to_plain(RUN)))]
        yield [json.loads(json.dumps(to_plain(dataclasses.replace(RUN, earlier=(3, 5)))))]

    def play(self, case: Any) -> None:
        try:
            match case:
                case str():
                    run = run_from_toml(case, "run.toml")
                case [plain]:
                    run = run_from_plain(plain, "the settings of a peer")
                case _:
                    return
            with_overrides(run, steps=1)
        except ConfigError as trouble:
            check_sentence(trouble)
            return
        again = run_from_plain(json.loads(json.dumps(to_plain(run))))
        if again != run or fingerprint(again) != fingerprint(run):
            raise Finding("settings that are others once they have travelled")


TARGET = Settings
