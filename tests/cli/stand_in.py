"""Stands for `swarmd start` under `--gpu all`: notes its words in its home, answers for its status, ends when told to.

What it does is in the environment: STAND_IN_CODES has an exit code for each card, which ends at once; others end with 0
at the first signal, or never if STAND_IN_DEAF is set. STAND_IN_STATUS is the status, JSON.
"""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path


def answer(place: Path) -> None:
    """Serves the status over HTTP, as a daemon does, in as far as `swarmctl` reads it."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(place))
    server.listen()
    body = os.environ["STAND_IN_STATUS"].encode()
    while True:
        taken, _ = server.accept()
        with taken:
            taken.recv(65536)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            taken.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)


def main() -> None:
    words = sys.argv[2:]
    home = Path(next(word for word in words if word.startswith("--home=")).removeprefix("--home="))
    card = next(word for word in words if word.startswith("--gpu=")).removeprefix("--gpu=")
    heard: list[int] = []
    ending = threading.Event()

    def hear(number: int, _frame: object) -> None:
        heard.append(number)
        if "STAND_IN_DEAF" not in os.environ:
            ending.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, hear)
    (home / "words.json").write_text(json.dumps(words))
    code = json.loads(os.environ.get("STAND_IN_CODES", "{}")).get(card)
    if code is not None:
        sys.exit(code)
    (home / "port").write_text("4001\n")
    threading.Thread(target=answer, args=(home / "control.sock",), daemon=True).start()
    print(f"listening on card {card}", file=sys.stderr, flush=True)
    while not ending.wait(0.05):
        pass
    (home / "heard.json").write_text(json.dumps(heard))


if __name__ == "__main__":
    main()
