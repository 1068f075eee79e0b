"""Word that the machine is about to go: from a file, from a command; nothing else is taken for it."""

import asyncio
from pathlib import Path

import psutil
import pytest

from swarmd.config import NodeConfig
from swarmd.daemon import children, spot
from swarmd.daemon.children import end_all
from swarmd.daemon.spot import check_spot, spot_notice
from swarmd.errors import ConfigError


async def test_a_file_that_appears(tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    config = NodeConfig(home="/h", spot_file=str(notice), spot_interval_s=0.01)
    check_spot(config)
    waiting = asyncio.create_task(spot_notice(config))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    notice.touch()
    assert str(notice) in await waiting
    with pytest.raises(ConfigError, match="remove it"):
        check_spot(config)


async def test_a_command_that_succeeds(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    command = f"echo x >> {counter}; test $(wc -l < {counter}) -ge 3"
    reason = await spot_notice(NodeConfig(home="/h", spot_command=command, spot_interval_s=0.01))
    assert command in reason
    assert counter.read_text() == "x\n" * 3


async def test_a_command_that_hangs_is_killed_and_no_notice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spot, "COMMAND_SECONDS", 0.05)
    waiting = asyncio.create_task(
        spot_notice(NodeConfig(home="/h", spot_command="exec sleep 100", spot_interval_s=0.01))
    )
    while "doesn't end within" not in caplog.text:
        await asyncio.sleep(0.01)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


def runs(process: int) -> bool:
    """True if a process is there and not merely unburied."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def started_by(path: Path) -> int:
    """The process whose number appears in a file."""
    async with asyncio.timeout(20):
        while not (path.exists() and (text := path.read_text()).endswith("\n")):
            await asyncio.sleep(0.01)
    return int(text)


async def gone(process: int) -> None:
    async with asyncio.timeout(20):
        while runs(process):
            await asyncio.sleep(0.01)


async def test_what_a_command_that_hangs_has_started_is_ended_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spot, "COMMAND_SECONDS", 0.3)
    written = tmp_path / "grandchild"
    command = f"test -e {written} && exit 1; sleep 100 & echo $! > {written}; cat /dev/zero | tail -f /dev/null"
    waiting = asyncio.create_task(spot_notice(NodeConfig(home="/h", spot_command=command, spot_interval_s=0.01)))
    grandchild = await started_by(written)
    await gone(grandchild)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.parametrize("end", ["cancelled", "without unwinding"])
async def test_at_the_daemon_s_end_nothing_of_a_command_is_left(end: str, tmp_path: Path) -> None:
    written = tmp_path / "grandchild"
    command = f"sleep 100 & echo $! > {written}; wait"
    waiting = asyncio.create_task(spot_notice(NodeConfig(home="/h", spot_command=command, spot_interval_s=100.0)))
    grandchild = await started_by(written)
    assert runs(grandchild)
    if end == "cancelled":
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    else:
        end_all()
    await gone(grandchild)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_an_end_that_is_cancelled_leaves_no_process_behind() -> None:
    async def asking() -> None:
        async with children.child("/bin/sh", "-c", "sleep 100") as process:
            processes.append(process)
            await asyncio.sleep(100)

    processes: list[asyncio.subprocess.Process] = []
    task = asyncio.create_task(asking())
    while not processes:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # it is at the end of the context now
    await asyncio.gather(task, return_exceptions=True)
    assert processes[0].returncode == -9


async def test_what_a_command_that_ended_left_behind_is_ended(tmp_path: Path) -> None:
    written = tmp_path / "grandchild"
    reason = await spot_notice(NodeConfig(home="/h", spot_command=f"sleep 100 & echo $! > {written}"))
    assert written.name in reason
    await gone(int(written.read_text()))


async def test_nothing_to_look_at_is_never_a_notice() -> None:
    waiting = asyncio.create_task(spot_notice(NodeConfig(home="/h", spot_interval_s=0.001)))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    waiting.cancel()


def test_what_is_left_of_the_notice_is_worked_through() -> None:
    """A notice may be heard of late, and the drain must fit in."""
    assert NodeConfig(home="/h", spot_notice_s=120.0).grace_s == 120.0 - 5.0 - 60.0
    assert NodeConfig(home="/h").grace_s == 0.0
