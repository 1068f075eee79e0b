"""Word that this machine is about to be taken away: a file that appears, or a command that succeeds.

Clouds announce the end of a spot or preemptible machine some 30 s to 2 min before, each in its own way; a line of shell
turns that into one of these. Knows nothing of what is done about it.
"""

import asyncio
import logging
from pathlib import Path

from swarmd.config import NodeConfig
from swarmd.daemon.children import child
from swarmd.errors import ConfigError

log = logging.getLogger(__name__)

COMMAND_SECONDS = 10.0  # a question to the machine's metadata is answered within milliseconds
FOUND = 0  # exit status of a command that says: there is a notice


def check_spot(config: NodeConfig) -> None:
    """Raises ConfigError when the notice is there already: a daemon that started now would go at once."""
    if _is_there(config):
        raise ConfigError(f"{config.spot_file} says that this machine is about to go; remove it to start all the same.")


def _is_there(config: NodeConfig) -> bool:
    return config.spot_file is not None and Path(config.spot_file).exists()


async def spot_notice(config: NodeConfig) -> str:
    """Returns, with the reason, once the machine is about to go; never without a file or command to look at."""
    told = ""
    while True:
        if _is_there(config):
            return f"{config.spot_file} is there"
        if config.spot_command is not None:
            status = await _run(config.spot_command)
            if status == FOUND:
                return f"`{config.spot_command}` says so"
            if status is None and not told:
                told = config.spot_command
                log.warning(
                    "the spot command doesn't end within %.0f s, or can't be started: %s", COMMAND_SECONDS, told
                )
        await asyncio.sleep(config.spot_interval_s)


async def _run(command: str) -> int | None:
    """The exit status of a line of shell, None if it doesn't end in time, or begin. Nothing that it started is left."""
    try:
        async with child("/bin/sh", "-c", command) as process, asyncio.timeout(COMMAND_SECONDS):
            return await process.wait()
    except OSError:  # too many processes, or it took too long
        return None
