"""Reports a failed `swarmd` command: one sentence on stderr, a line in the daemon's log if it has one, an exit code."""

import errno
import logging
import sys
import traceback
from collections.abc import Callable

from swarmd import exits
from swarmd.command_line import say
from swarmd.errors import ConfigError, ControlError, SwarmError
from swarmd.printable import printable_lines

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the disk takes no more, whatever was being written

log = logging.getLogger(__name__)


def reported(action: Callable[[], int], *, debug: bool) -> int:
    """Runs a command and returns its exit code. A failure is reported; with `debug` its traceback is shown, too."""
    try:
        return action()
    except KeyboardInterrupt:
        warn("interrupted.")
        return exits.FAILED
    except BrokenPipeError:
        return exits.FAILED  # the reader of our output has gone, as with `| head`
    except Exception as error:  # noqa: BLE001 - the one place where a failure becomes a clean end
        if debug:
            print(printable_lines(traceback.format_exc()), file=sys.stderr)
        known = _known_trouble(error)
        sentence = str(known) if known else f"failed: {type(error).__name__}: {error} (--debug shows where)."
        _note_in_log(sentence, None if known else error)
        warn(sentence)
        return exits.MISTAKE if isinstance(known, ConfigError | ControlError) else exits.FAILED


def warn(sentence: str) -> None:
    """Prints a sentence on stderr."""
    say("swarmd", sentence)


def _note_in_log(sentence: str, error: Exception | None) -> None:
    """Writes the end of the daemon into its log file, once there is one; the terminal gets the sentence by itself."""
    if logging.getLogger().handlers:
        from swarmd.daemon.logs import FILE_ONLY

        log.critical(sentence, exc_info=error, extra=FILE_ONLY)


def _known_trouble(error: BaseException) -> SwarmError | None:
    """The SwarmError in an exception or in a task group's bundle of them; one that the user can mend comes first."""
    if isinstance(error, SwarmError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" for {error.filename}" if error.filename else ""
        return ConfigError(f"{str(error.strerror).lower()}{where}; free some, or choose another --home.")
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [known for known in map(_known_trouble, error.exceptions) if known is not None]
    if len(found) < len(error.exceptions):
        return None  # something else failed too; that is what must be shown
    return min(found, key=lambda known: not isinstance(known, ConfigError | ControlError))
