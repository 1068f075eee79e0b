"""Stand-ins for the parts of a demo: a view that remembers, daemons that train nothing, a home with a ledger."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from swarmd.config import ModelConfig, RunConfig
from swarmd.demo.options import DemoOptions
from swarmd.demo.process import DaemonProcess
from swarmd.demo.swarm import Demo
from tests.daemon.fake_swarmd import STEPS
from tests.daemon.fakes import STATUS

FAKE = (sys.executable, "-m", "tests.daemon.fake_swarmd")
RUN = RunConfig("toy", ModelConfig(256, 8, 16, 2, 2, 2, 16), steps=STEPS)
OPTIONS = DemoOptions(peers=3, model="toy", stages=None, steps=None, home=None, as_json=False, timeout_s=30)


class Said:
    """A view that remembers."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.shown = asyncio.Event()

    def show(self, peers: Sequence[DaemonProcess], elapsed_s: float) -> None:
        if all(peer.status is not None for peer in peers):
            self.shown.set()

    def say(self, text: str) -> None:
        self.sentences.append(text)

    def close(self) -> None:
        pass


def make(home: Path, view: Said, behaviour: str = "", count: int = 2, **changes: object) -> Demo:
    (home / "behaviour").write_text(behaviour)
    peers = [DaemonProcess(number, number % 2, home / f"peer-{number}", FAKE) for number in range(count)]
    return Demo(replace(OPTIONS, **changes), RUN, home, peers, view)  # type: ignore[arg-type]


def daemon_with_losses(tmp_path: Path, losses: Sequence[float | None]) -> DaemonProcess:
    peer = DaemonProcess(0, 0, tmp_path / "peer-0")
    peer.home.path.mkdir()
    lines = [
        json.dumps({"step": step, "stage": 0, "loss": loss, "tokens": 10, "seconds": 0.5})
        for step, loss in enumerate(losses, 1)
    ]
    peer.home.ledger.write_text("\n".join(lines))
    peer.status = STATUS
    return peer
