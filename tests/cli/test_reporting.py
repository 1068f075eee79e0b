"""A failure of a command as a sentence and an exit code."""

import errno
from collections.abc import Callable

import pytest

from swarmd.cli.reporting import reported
from swarmd.errors import ConfigError, ControlError, GaveUp, SwarmError


def fails_with(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConfigError("change it."), 2, "change it."),
        (ControlError("no daemon."), 2, "no daemon."),
        (GaveUp("nothing came."), 1, "nothing came."),
        (KeyboardInterrupt(), 1, "interrupted."),
        (OSError(errno.ENOSPC, "No space left", "/x"), 2, "no space left for /x; free some, or choose another --home."),
        (OSError(errno.EPERM, "No"), 1, "failed: PermissionError: [Errno 1] No (--debug shows where)."),
        (ExceptionGroup("", [SwarmError("second."), ConfigError("first.")]), 2, "first."),
        (ExceptionGroup("", [ConfigError("known."), ValueError()]), 1, "failed: ExceptionGroup:"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_is_one_sentence(
    error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reported(fails_with(error), debug=False) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"swarmd: {sentence}")
    assert captured.err.count("\n") == 1


def test_nobody_is_told_when_the_reader_of_the_output_has_gone(capsys: pytest.CaptureFixture[str]) -> None:
    assert reported(fails_with(BrokenPipeError()), debug=False) == 1
    assert capsys.readouterr().err == ""
