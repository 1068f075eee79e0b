"""The demo's options and home, and its verdict."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from swarmd.config import RunConfig
from swarmd.demo.report import judge, with_sample
from swarmd.demo.run import prepare_home, run_demo, verdict
from swarmd.errors import ConfigError
from tests.daemon.fake_swarmd import STEPS
from tests.demo.stand_ins import OPTIONS, RUN, daemon_with_losses


def test_kills_need_a_second_replica() -> None:
    with pytest.raises(ConfigError, match="--peers 4"):
        run_demo(replace(OPTIONS, model="tiny", kill_every_s=20.0))


def test_a_home_with_a_run_in_it_is_refused(tmp_path: Path) -> None:
    assert prepare_home(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "new" / "peer-0").mkdir()
    with pytest.raises(ConfigError, match="already holds another run"):
        prepare_home(tmp_path / "new")


@pytest.mark.parametrize(
    ("losses", "fell"), [([5.0, 4.0], True), ([5.0, 6.0], False), ([5.0], False), ([], False), ([None, 5.0, 4.0], True)]
)
def test_the_loss_is_judged(tmp_path: Path, losses: list[float | None], fell: bool) -> None:
    run = replace(RUN, steps=len(losses))
    result = judge(run, tmp_path, [daemon_with_losses(tmp_path, losses)], 10.0, 1.0)
    assert result.fell is fell
    assert result.tokens_per_second == (20.0 if losses else 0.0)
    assert verdict(run, replace(result, sample="x")) == (0 if fell else 1)


def test_a_run_cut_short_or_without_a_sample_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = judge(RUN, tmp_path, [daemon_with_losses(tmp_path, [5.0, 4.0])], 10.0, 1.0)
    lost = replace(result, steps=STEPS, sample="x", ledger={**result.ledger, "lost": 2})
    assert verdict(RUN, lost) == 1
    assert "2 microbatches lost" in capsys.readouterr().err
    assert verdict(RUN, replace(result, sample="x")) == 1
    assert f"only 2 of {STEPS} steps" in capsys.readouterr().err
    short = replace(RUN, steps=2)

    def broken(_directories: Sequence[Path], _run: RunConfig, _prompt: str, _tokens: int) -> str:
        raise FileNotFoundError("no checkpoint of stage 1")

    assert verdict(short, with_sample(result, short, broken)) == 1
    assert "no checkpoint of stage 1" in capsys.readouterr().err
