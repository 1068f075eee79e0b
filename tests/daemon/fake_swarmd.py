"""Stands in for `swarmd` under the demo: answers on its control socket, writes a ledger whose loss falls, and ends.

A file called `behaviour` beside the homes says who misbehaves: `PEER dies`, `PEER lingers` or `PEER stubborn`.
"""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from swarmd.daemon.home import Home
from swarmd.daemon.store import LocalStore
from tests.daemon.fakes import FakeDaemon, served

STEPS = 12
STEP_S = 0.02


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in (
        "--home",
        "--threads",
        "--model",
        "--stage",
        "--device",
        "--listen",
        "--steps",
        "--stages",
        "--bootstrap",
    ):
        parser.add_argument(name)
    options = parser.parse_args(sys.argv[2:])
    home = Home(options.home)
    behaviour_file = home.path.parent / "behaviour"
    lines = behaviour_file.read_text().splitlines() if behaviour_file.exists() else []
    behaviours = dict(line.split() for line in lines)
    return asyncio.run(live(home, int(options.stage), behaviours.get(home.path.name.removeprefix("peer-"))))


async def live(home: Home, stage: int, behaviour: str | None) -> int:
    home.log.write_text(f"the log of {home.path.name}\n")
    stopped = asyncio.Event()
    on_term = (lambda: None) if behaviour == "stubborn" else stopped.set
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_term)
    if behaviour == "dies":
        print("out of luck", file=sys.stderr)
        return 1
    daemon, store = FakeDaemon(), LocalStore(home)
    async with served(daemon, home):
        for step in range(1, STEPS + 1):
            daemon.say(stage=stage, version=step - 1, step=step, steps=STEPS, loss=5.0 - 0.1 * step)
            line = {
                "step": step,
                "stage": stage,
                "loss": 5.0 - 0.1 * step,
                "tokens": 100,
                "seconds": STEP_S,
                "resent": 1,
            }
            store.append_ledger(line)
            await asyncio.sleep(STEP_S)
        (home.path / "argv.json").write_text(json.dumps(sys.argv[1:]))
        if behaviour in ("lingers", "stubborn"):
            await stopped.wait()
            return 0
        await asyncio.sleep(0.3)  # so that whoever founds the swarm can still be asked for its address
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
