"""Error, bytes and speed of every codec, on the CPU and on a GPU where there is one.

    python -m benchmarks.codecs [--json | --wide] [--threads N]...

Two tensors as hops carry them: normally distributed, and with the heavy tails of real activations (a few channels
thirty times larger than the rest).
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.forms import add_forms, table
from swarmd.layout import Column, FittedTable
from swarmd.screen import show
from swarmd.stage.codec import available_codecs, decode, encode

SHAPES = ((4, 256, 512), (1, 2048, 4096))
REPEATS = 15
LARGE_CHANNELS = 6  # of the heavy-tailed tensor


@dataclass(frozen=True)
class Row:
    """One codec on one tensor."""

    device: str
    threads: int
    shape: tuple[int, ...]
    kind: str
    codec: str
    bytes_per_element: float
    relative_error: float  # norm of the difference over norm
    encode_ms: float
    decode_ms: float


def sample(shape: tuple[int, ...], kind: str, device: str) -> Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if kind == "heavy":
        tensor[..., torch.randperm(shape[-1], generator=torch.Generator().manual_seed(1))[:LARGE_CHANNELS]] *= 30.0
    return tensor.to(device)


def milliseconds(call: Callable[[], object], device: str) -> float:
    """The lower third of the repeats: what it takes when nothing else disturbs."""
    times = []
    for _ in range(REPEATS + 2):
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[2:])[REPEATS // 3] * 1e3


def measure(shape: tuple[int, ...], kind: str, codec: str, device: str) -> Row:
    tensor = sample(shape, kind, device)
    encoded = encode(tensor, codec)
    error = (decode(encoded, device).double() - tensor.double()).norm() / tensor.double().norm()
    return Row(
        device=torch.cuda.get_device_name() if device != "cpu" else platform.machine(),
        threads=torch.get_num_threads(),
        shape=shape,
        kind=kind,
        codec=codec,
        bytes_per_element=encoded.nbytes / tensor.numel(),
        relative_error=float(error),
        encode_ms=milliseconds(lambda: encode(tensor, codec), device),
        decode_ms=milliseconds(lambda: decode(encoded, device), device),
    )


def measure_all(threads: list[int]) -> list[Row]:
    rows = []
    for device, count in [("cpu", count) for count in threads] + [("cuda", 1)] * torch.cuda.is_available():
        torch.set_num_threads(count)
        for shape in SHAPES:
            for kind in ("normal", "heavy"):
                rows += [measure(shape, kind, codec, device) for codec in available_codecs()]
                print(f"{device} {count} {shape} {kind} measured", file=sys.stderr)
    return rows


_COLUMNS = (
    Column("device", 6, right=False),
    Column("threads", 5),
    Column("shape", 4, right=False),
    Column("values", right=False),
    Column("codec", right=False),
    Column("bytes/element", 3),
    Column("error"),
    Column("encode ms", 1),
    Column("decode ms", 2),
)


def render(rows: Sequence[Row]) -> FittedTable:
    """A row for each codec, tensor and number of threads."""
    return table(_COLUMNS, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[object, ...]:
    return (
        row.device,
        row.threads,
        "x".join(map(str, row.shape)),
        row.kind,
        row.codec,
        f"{row.bytes_per_element:.4f}",
        f"{row.relative_error:.2e}",
        f"{row.encode_ms:.3f}",
        f"{row.decode_ms:.3f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_forms(parser)
    parser.add_argument("--threads", type=int, action="append", help="CPU threads; may be given several times")
    arguments = parser.parse_args()
    rows = measure_all(arguments.threads or [1, 2])
    if arguments.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        show(render(rows), wide=arguments.wide)


if __name__ == "__main__":
    main()
