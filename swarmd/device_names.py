"""Names of devices, as options and settings have them: `cpu`, or `cuda:N` for the card of that number.

Loads nothing, so that a wrong name is answered at once. Whether torch can compute on a card is `stage/device.py`.
"""

from swarmd.errors import ConfigError

_OTHERS = {
    "mps": "swarmd doesn't compute on Apple's GPUs (MPS); use --device cpu.",
    "rocm": "under ROCm torch calls an AMD card cuda:N, too; use --device cuda:0.",
    "hip": "under ROCm torch calls an AMD card cuda:N, too; use --device cuda:0.",
    "gpu": "a card is called cuda:N; use --gpu 0 or --device cuda:0.",
}


def parse_device(name: str) -> int | None:
    """The number of a card, None for the CPU. Raises ConfigError."""
    if name == "cpu":
        return None
    kind, colon, number = name.partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdecimal())):
        raise ConfigError(f"device {name} is not known: {_OTHERS.get(kind.lower(), 'use cpu or cuda:N.')}")
    return int(number or "0")
