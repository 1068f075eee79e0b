"""Runs that peers offer: read with distrust, and compared with the run that is wanted."""

import dataclasses
from typing import Any

import pytest

from swarmd.config import ModelConfig, RunConfig, fingerprint, prolonged, to_plain
from swarmd.daemon.offers import AnotherRun, NoRun, Prolonged, ask_settings, check_wanted, read_run
from swarmd.errors import Mismatch, Refused
from swarmd.swarm.wire.messages.common import PROTOCOL
from swarmd.swarm.wire.messages.presence import Settings

RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16))
OTHER = dataclasses.replace(RUN, seed=1)
LONGER = prolonged(RUN, RUN.steps + 10)


class Answering:
    """Links to a peer that gives these settings, or refuses."""

    def __init__(self, answer: Settings | Refused) -> None:
        self._answer = answer

    async def ask_settings(self, _peer: str) -> Settings:
        if isinstance(self._answer, Refused):
            raise self._answer
        return self._answer


async def test_a_peer_without_a_run_and_one_of_another_release_are_told_apart() -> None:
    async def ask(answer: Settings | Refused) -> Settings:
        links: Any = Answering(answer)
        return await ask_settings(links, "b")

    settings = Settings(to_plain(RUN), fingerprint(RUN), PROTOCOL)
    assert await ask(settings) == settings
    with pytest.raises(NoRun, match="idle"):
        await ask(Refused("this daemon is idle"))
    with pytest.raises(Mismatch, match="is of an older release"):
        await ask(dataclasses.replace(settings, protocol=0))
    with pytest.raises(Mismatch, match=f"it speaks protocol {PROTOCOL + 1}"):
        await ask(dataclasses.replace(settings, protocol=PROTOCOL + 1))


def test_settings_must_be_usable_and_what_they_claim() -> None:
    assert read_run(Settings(to_plain(RUN), fingerprint(RUN), PROTOCOL)) == RUN
    with pytest.raises(Mismatch, match="don't have the fingerprint"):
        read_run(Settings(to_plain(RUN), fingerprint(OTHER), PROTOCOL))
    with pytest.raises(Mismatch, match="settings that this version can't use"):
        read_run(Settings({**to_plain(RUN), "steps": -1}, fingerprint(RUN), PROTOCOL))


def test_only_the_wanted_run_is_joined_though_it_may_be_longer_by_now() -> None:
    check_wanted(OTHER, "", None)
    check_wanted(RUN, fingerprint(RUN), RUN)
    check_wanted(LONGER, fingerprint(RUN), RUN)
    with pytest.raises(AnotherRun):
        check_wanted(OTHER, fingerprint(RUN), RUN)
    with pytest.raises(Prolonged, match="leave out --steps"):
        check_wanted(RUN, fingerprint(LONGER), LONGER)
