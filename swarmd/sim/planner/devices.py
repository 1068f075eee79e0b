"""Devices that a plan is made for: a table of common GPUs, profiles that `swarmd profile` measured, and how `--peers`
names them.

The table holds what datasheets state (dense rates, no sparsity). What a device reaches of it while it trains is an
assumption, named here and explained in docs/planning.md. Knows no model; `costs.py` turns both into seconds.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swarmd.errors import ConfigError
from swarmd.files import read_json

GB = 1e9
TERA = 1e12
MATMUL_SHARE = 0.55
"""Share of the datasheet's tensor rate that a training step's matrix products reach. An assumption; with it the
formulas of `costs.py` give 44 % of an A100's peak at width 2304 and 50 % at 25,600, where Megatron-LM (Narayanan et al.
2021, table 1) reports 44 % and 52 %.
"""
COOL_SHARE = 0.35  # the same of cards of 70 W (T4, L4), which slow down under sustained load: an assumption
FP32_SHARE = 0.75  # of the fp32 rate, in matrix products without tensor units: an assumption
LAUNCH_SECONDS = 8e-6  # per kernel that PyTorch starts, eagerly: an assumption
PROFILE_BYTES_LIMIT = 1 << 20  # a profile is a page of JSON
PEERS_LIMIT = 10_000  # of one plan


@dataclass(frozen=True)
class Point:
    """A profile's figures at one width: seconds of a block application over `tokens` tokens, and a hop's overhead."""

    hidden: int
    tokens: int
    forward_flops: float  # floating-point operations of that block's forward
    forward_s: float
    backward_s: float
    forward_fixed_s: float  # codec and bookkeeping of a forward; grows with tokens x hidden
    backward_fixed_s: float
    logit_s: float = 0.0  # of loss and its gradient, per token and word of the vocabulary


@dataclass(frozen=True)
class Device:
    """One kind of device."""

    name: str
    memory_bytes: float
    half_flops: float  # dense fp16 with fp32 sums, per second
    fp32_flops: float
    bandwidth: float  # of its memory, bytes/s
    has_bf16: bool = True  # matrix units for bf16
    share: float = MATMUL_SHARE
    source: str = ""
    points: tuple[Point, ...] = ()  # measured; then the rates above are not used
    measured: str = "fp32"  # dtype of the products that were
    round_s: Mapping[str, float] = field(default_factory=dict)  # per element: contribution, reduce, assemble, apply
    crowd: tuple[float, ...] = ()  # speed of each of 1, 2, .. processes that compute at once, relative to one alone
    cores: int = 0  # that its processes share; 0: it is nobody else's

    @property
    def fast_dtype(self) -> str:
        """The dtype of products that a node chooses on it (`stage/numerics.py`), and that a profile measured."""
        if self.points:
            return self.measured
        return "bf16" if self.has_bf16 else "fp16"

    def peak(self, dtype: str) -> float:
        """Rate of matrix products, as the datasheet has it. bf16 without units for it is as slow as fp32."""
        if dtype == "fp16" or (dtype == "bf16" and self.has_bf16):
            return self.half_flops
        return self.fp32_flops

    def matmul_flops(self, dtype: str) -> float:
        """The rate that matrix products reach while training."""
        peak = self.peak(dtype)
        return peak * (self.share if peak == self.half_flops else FP32_SHARE)


def _gpu(
    name: str,
    memory_gb: float,
    half: float,
    fp32: float,
    bandwidth_gb: float,
    source: str,
    *,
    bf16: bool = True,
    cool: bool = False,
) -> Device:
    return Device(
        name,
        memory_gb * GB,
        half * TERA,
        fp32 * TERA,
        bandwidth_gb * GB,
        bf16,
        COOL_SHARE if cool else MATMUL_SHARE,
        source,
    )


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("V100", 16, 125, 15.7, 900, "NVIDIA V100 datasheet, SXM2", bf16=False),
        _gpu("V100-32GB", 32, 125, 15.7, 900, "NVIDIA V100 datasheet, SXM2", bf16=False),
        _gpu("T4", 16, 65, 8.1, 320, "NVIDIA T4 datasheet", bf16=False, cool=True),
        _gpu("RTX2080Ti", 11, 53.8, 13.4, 616, "NVIDIA Turing GPU Architecture whitepaper", bf16=False),
        _gpu("A100", 40, 312, 19.5, 1555, "NVIDIA A100 datasheet, SXM 40 GB"),
        _gpu("A100-80GB", 80, 312, 19.5, 2039, "NVIDIA A100 datasheet, SXM 80 GB"),
        _gpu("A10", 24, 125, 31.2, 600, "NVIDIA A10 datasheet"),
        _gpu("A6000", 48, 154.8, 38.7, 768, "NVIDIA RTX A6000 datasheet; half of its rate with sparsity"),
        _gpu("RTX3090", 24, 71, 35.6, 936, "NVIDIA Ampere GA102 GPU Architecture whitepaper; 142 with sparsity"),
        _gpu("RTX4090", 24, 165, 82.6, 1008, "NVIDIA Ada GPU Architecture whitepaper, fp32 sums"),
        _gpu("L4", 24, 121, 30.3, 300, "NVIDIA L4 datasheet; half of its rate with sparsity", cool=True),
        _gpu("L40S", 48, 362, 91.6, 864, "NVIDIA L40S datasheet"),
        _gpu("H100", 80, 989, 67, 3350, "NVIDIA H100 datasheet, SXM; half of its rate with sparsity"),
        _gpu("H200", 141, 989, 67, 4800, "NVIDIA H200 datasheet, SXM; half of its rate with sparsity"),
    )
}


@dataclass(frozen=True)
class Group:
    """So many equal peers."""

    count: int
    device: Device
    down: float  # bytes/s
    up: float
    price: float | None = None  # per hour and peer, in any currency
    pace: float = 1.0  # relative to the device's usual speed

    @property
    def label(self) -> str:
        pace = "" if self.pace == 1.0 else f"*{self.pace:g}"
        return f"{self.device.name}{pace}@{_rate_text(self.down, self.up)}"


# ------------------------------------------------------------------------------------------------- reading

_GROUP = re.compile(
    r"^(?:(?P<count>[\d.,+-]*\d)x)?(?P<device>[^@*$]+?)(?:\*(?P<pace>[\d.]+))?"
    r"(?:@(?P<down>[\d.]+)(?:/(?P<up>[\d.]+))?(?P<unit>[kKmMgG])(?:bps|bit/s|b/s))?(?:\$(?P<price>[\d.]+))?$"
)
DTYPES = ("fp32", "bf16", "fp16")  # of products, that a profile may have measured
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
BITS = 8
LINK_DEFAULT = "100Mbps"  # what many homes have; every plan says it
EXAMPLE = "32xT4@200Mbps,4xA100@1Gbps$1.10"


def parse_peers(text: str, prices: Sequence[str] = ()) -> tuple[Group, ...]:
    """`32xT4@200Mbps$0.35,2xlaptop.json*0.5@50/10Mbps`: count x device * pace @ down/up $ price per hour.

    Prices of devices may come beside it (`T4=0.35`). Raises ConfigError.
    """
    groups = tuple(_parse_group(part.strip()) for part in text.split(",") if part.strip())
    if not groups:
        raise ConfigError(f"--peers names no peer; it looks like {EXAMPLE}.")
    if sum(group.count for group in groups) > PEERS_LIMIT:
        raise ConfigError(f"--peers names more than {PEERS_LIMIT:,} peers; plan for fewer.")
    for price in prices:
        name, _, amount = price.partition("=")
        found = [group for group in groups if group.device.name.lower() == name.strip().lower()]
        if not found:
            raise ConfigError(f"--price {price} is for a device that --peers does not name; it looks like T4=0.35.")
        value = _number(amount, f"--price {price}", zero=True)
        groups = tuple(replace(group, price=value) if group in found else group for group in groups)
    return groups


def _parse_group(part: str) -> Group:
    match = _GROUP.match(part)
    if match is None:
        raise ConfigError(f"--peers {part} can't be read; it looks like {EXAMPLE}.")
    given = match["count"] or "1"
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"--peers {part} asks for {given} peers; give a whole number of them, at least 1.")
    device = find_device(match["device"].strip())
    if match["down"]:
        unit = _UNITS[match["unit"].lower()] / BITS
        down = _number(match["down"], f"--peers {part}") * unit
        up = _number(match["up"], f"--peers {part}") * unit if match["up"] else down
    else:
        down = up = 100e6 / BITS
    pace = _number(match["pace"], f"--peers {part}") if match["pace"] else 1.0
    price = _number(match["price"], f"--peers {part}", zero=True) if match["price"] else None
    return Group(int(given), device, down, up, price, pace)


def _number(text: str, where: str, *, zero: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        wanted = "a number that is not negative" if zero else "a number over 0"
        raise ConfigError(f"{where} holds {text or 'nothing'} where {wanted} should be; correct it.")
    return value


def _rate_text(down: float, up: float) -> str:
    mega = [rate * BITS / 1e6 for rate in ((down,) if down == up else (down, up))]
    unit, scale = ("Gbps", 1e3) if min(mega) >= 1e3 else ("Mbps", 1.0)
    return "/".join(f"{rate / scale:g}" for rate in mega) + unit


def find_device(name: str) -> Device:
    """A device of the table, in letters of any case, or a profile's file. Raises ConfigError."""
    if name.endswith(".json"):
        return read_profile(Path(name))
    wanted = re.sub(r"[\s_-]", "", name).lower()
    for device in DEVICES.values():
        if device.name.replace("-", "").lower() == wanted:
            return device
    raise ConfigError(
        f"no device is called {name}; there are {', '.join(DEVICES)}, "
        "or a file that `swarmd profile --output FILE.json` wrote."
    )


def read_profile(path: Path) -> Device:
    """Reads a file that `swarmd profile` wrote. Raises ConfigError."""
    try:
        return profile_from_plain(read_json(path, PROFILE_BYTES_LIMIT))
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}); write it with `swarmd profile`.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is not a profile ({error}); write one with `swarmd profile`.") from error


def profile_from_plain(plain: Mapping[str, Any]) -> Device:
    """A device from a profile's JSON. Raises ValueError, TypeError or KeyError if it isn't one."""
    points = tuple(sorted((Point(**point) for point in plain["points"]), key=lambda point: point.hidden))
    if not points:
        raise ValueError("it measured no width")
    if (dtype := str(plain.get("dtype", "fp32"))) not in DTYPES:
        raise ValueError(f"it measured {dtype}, which is none of {', '.join(DTYPES)}")
    for point in points:
        if min(point.hidden, point.tokens, point.forward_flops, point.forward_s, point.backward_s) <= 0:
            raise ValueError("a measured width is not positive")
    return Device(
        name=str(plain["name"]),
        memory_bytes=float(plain["memory_bytes"]),
        half_flops=0.0,
        fp32_flops=0.0,
        bandwidth=0.0,
        source=f"measured by swarmd profile: {plain['device']}",
        points=points,
        round_s={str(key): float(value) for key, value in plain["round_s"].items()},
        crowd=tuple(float(value) for value in plain["crowd"]),
        cores=int(plain["cores"]),
        measured=dtype,
    )
