"""The cards that torch can compute on, and for each other one a sentence with what helps.

What torch and the system say is read in `look` and `look_at_card` alone; what follows from it is decided without them.
"""

import contextlib
import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from swarmd.device_names import parse_device
from swarmd.errors import ConfigError
from swarmd.files import read_regular

Capability = tuple[int, int]

DRIVER_FILE = "/proc/driver/nvidia/version"
DRIVER_FILE_BYTES = 1 << 12
PCI = Path("/sys/bus/pci/devices")
PCI_FILE_BYTES = 64
DISPLAY, ACCELERATOR = "0x03", "0x12"  # classes of PCI devices
NVIDIA, AMD = "0x10de", "0x1002"  # vendors

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}  # of NVIDIA, for a build for that CUDA (its release notes, table 2)
USUAL, OLD = "cu130", "cu126"  # PyTorch's builds of torch 2.13 for CUDA: the default, and the one for older cards
OLD_DRIVER = 525  # from which on the latter works
OLD_KERNELS: tuple[Capability, Capability] = ((5, 0), (9, 0))  # from, to
NEWER: Capability = (7, 5)  # what the default begins with
TEGRA: tuple[Capability, ...] = ((5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0))
"""Boards on which only code runs that was compiled for them, or on them."""

INSTALL = "pip install --force-reinstall torch=={version} --index-url https://download.pytorch.org/whl/{build}"
CPU = "--device cpu computes without the card"


@dataclass(frozen=True)
class Sight:
    """This machine's cards, as torch and the system describe them."""

    torch: str  # version, as 2.13.0+cpu
    cuda: str = ""  # version of the CUDA that torch was built for; "": for none
    hip: str = ""  # the same of ROCm
    kernels: tuple[str, ...] = ()  # what torch has compiled code for: sm_80, compute_120, gfx90a
    count: int = 0  # of the cards that torch sees
    trouble: str = ""  # why torch can't use any, in its own words
    driver: str = ""  # version of NVIDIA's, as 580.65.06; "": it isn't loaded
    vendors: frozenset[str] = frozenset()  # of cards in this machine
    hidden: str | None = None  # CUDA_VISIBLE_DEVICES, if it is set


@dataclass(frozen=True)
class Card:
    """One card, as torch describes it."""

    name: str
    capability: Capability = (0, 0)  # of NVIDIA's
    arch: str = ""  # of AMD's, as gfx90a


def check_device(device: str) -> torch.device:
    """The device of that name. Raises ConfigError if torch can't compute there."""
    if (number := parse_device(device)) is None:
        return torch.device("cpu")
    sight = look()
    why = obstacle(number, sight) or obstacle_of_card(number, look_at_card(number), sight)
    if why:
        raise ConfigError(f"device cuda:{number} can't be used: {why}")
    return torch.device("cuda", number)


def look() -> Sight:
    """Asks torch, which gets CUDA ready, and the system."""
    cuda, hip = torch.version.cuda or "", torch.version.hip or ""
    trouble, count = "", 0
    with warnings.catch_warnings():  # torch's own words on the same, of many lines
        warnings.simplefilter("ignore")
        if cuda or hip:
            try:
                torch.cuda.init()  # type: ignore[no-untyped-call]
                count = torch.cuda.device_count()
            except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
                trouble = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Sight(
        torch=torch.__version__,
        cuda=cuda,
        hip=hip,
        kernels=tuple(torch.cuda.get_arch_list()),
        count=count,
        trouble=trouble,
        driver=_driver(),
        vendors=_vendors(),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def look_at_card(number: int) -> Card:
    """Asks torch about a card that it sees."""
    found = torch.cuda.get_device_properties(number)
    return Card(found.name, (found.major, found.minor), getattr(found, "gcnArchName", "").partition(":")[0])


def _driver() -> str:
    with contextlib.suppress(OSError, ValueError):
        text = read_regular(DRIVER_FILE, DRIVER_FILE_BYTES).decode()
        if found := re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", text):
            return found[0]
    return ""


def _vendors() -> frozenset[str]:
    """The makers of the cards on the PCI bus."""
    found = set()
    with contextlib.suppress(OSError):
        for device in PCI.iterdir():
            with contextlib.suppress(OSError, ValueError):
                kind = read_regular(device / "class", PCI_FILE_BYTES).decode()
                if kind.startswith((DISPLAY, ACCELERATOR)):
                    found.add(read_regular(device / "vendor", PCI_FILE_BYTES).decode().strip())
    return frozenset(found)


# ------------------------------------------------------------------------------------------------- what follows


def obstacle(number: int, sight: Sight) -> str:
    """Why torch can use no card of that number, a sentence with what helps; "" if it sees one."""
    if not sight.cuda and not sight.hip:
        return _no_card_build(sight)
    if sight.trouble:
        return _trouble(sight)
    if number < sight.count:
        return ""
    there = (
        "no card" if not sight.count else f"only cuda:0 to cuda:{sight.count - 1}" if sight.count > 1 else "only cuda:0"
    )
    if sight.hidden is not None:
        hides = f"CUDA_VISIBLE_DEVICES is '{sight.hidden}'"
        return f"torch sees {there}, as {hides}; `unset CUDA_VISIBLE_DEVICES` shows it all."
    return f"torch sees {there}; `{'rocminfo' if sight.hip else 'nvidia-smi'}` lists what the driver sees; {CPU}."


def _no_card_build(sight: Sight) -> str:
    """Of a build for CPUs."""
    build = f"the installed torch {sight.torch} is PyTorch's build for CPUs"
    if sight.driver or NVIDIA in sight.vendors:
        return f"{build}, and this machine has an NVIDIA card: `{_install(sight, USUAL)}` gets the build for it; {CPU}."
    if AMD in sight.vendors:
        return (
            f"{build}, and this machine has an AMD card: https://pytorch.org/get-started/locally has the command that "
            f"gets the build for ROCm, on which swarmd has not been tried; {CPU}."
        )
    if sys.platform == "darwin":
        return f"{build} and Apple's GPUs, on which swarmd doesn't compute; use --device cpu."
    return f"{build}, and this machine shows no card; use --device cpu."


def _trouble(sight: Sight) -> str:
    """Of a build for cards that finds none to use."""
    if sight.hip:
        return f"torch's build for ROCm says: {sight.trouble}; `rocminfo` shows what the driver sees; {CPU}."
    oldest = OLDEST_DRIVER.get(_leading(sight.cuda), 0)
    if sight.driver and _leading(sight.driver) < oldest:
        older = _leading(sight.driver) >= OLD_DRIVER and _leading(sight.cuda) > 12
        instead = f", or `{_install(sight, OLD)}` gets a build for this one" if older else ""
        return (
            f"its driver {sight.driver} is too old for the installed torch {sight.torch}: install NVIDIA's driver "
            f"{oldest} or newer (`nvidia-smi` then says so){instead}; {CPU}."
        )
    if not sight.driver and NVIDIA not in sight.vendors:
        return f"this machine shows no NVIDIA card ({sight.trouble}); `nvidia-smi` lists what the driver sees; {CPU}."
    if not sight.driver:
        return (
            f"NVIDIA's driver is not loaded ({sight.trouble}): install it, until `nvidia-smi` lists the card; a "
            f"container needs `--gpus all`; {CPU}."
        )
    return f"torch says: {sight.trouble}; `nvidia-smi` shows how the card is; {CPU}."


def obstacle_of_card(number: int, card: Card, sight: Sight) -> str:
    """Why torch can't compute on a card that it sees, a sentence with what helps; "" if it can."""
    if sight.hip:
        if not sight.kernels or card.arch in sight.kernels:
            return ""
        return (
            f"it is a {card.name} ({card.arch}), for which the installed torch {sight.torch} has no kernels "
            f"({', '.join(sight.kernels)}); {CPU}."
        )
    if has_kernels(card.capability, sight.kernels):
        return ""
    major, minor = card.capability
    lacks = (
        f"it is a {card.name} (compute capability {major}.{minor}), for which the installed torch {sight.torch} has no "
        f"kernels ({', '.join(sight.kernels) or 'it says of none'})"
    )
    if OLD_KERNELS[0] <= card.capability < NEWER and not sight.cuda.startswith("12.6"):
        return f"{lacks}: `{_install(sight, OLD)}` gets a build that has; {CPU}."
    if card.capability < OLD_KERNELS[0]:
        return f"{lacks}, nor has any other build; {CPU}."
    return f"{lacks}: `{_install(sight, USUAL)}` gets a build that has, or `pip install --upgrade torch`; {CPU}."


def has_kernels(capability: Capability, kernels: tuple[str, ...]) -> bool:
    """True if code for one of these architectures runs on a card of that compute capability."""
    return any(_runs(capability, name) for name in kernels)


def _runs(capability: Capability, name: str) -> bool:
    """`sm_XY` is machine code for X.Y and later ones of the same X, `compute_XY` (PTX) is compiled for any later card
    when it is loaded. With an `a` behind it both run on that very architecture, with an `f` on its family.
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
    if found is None:
        return False
    code = (int(found[2]), int(found[3]))
    if found[4] == "a":
        return capability == code
    if found[1] == "compute" and not found[4]:
        return capability >= code
    bound_to_board = capability in TEGRA or code in TEGRA
    return capability == code if bound_to_board else capability[0] == code[0] and capability >= code


def _leading(version: str) -> int:
    """The first number of a version; 0 if there is none."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _install(sight: Sight, build: str) -> str:
    return INSTALL.format(version=sight.torch.partition("+")[0], build=build)
