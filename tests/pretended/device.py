"""A CUDA device that only pretends: the real engine on fake tensors, which have a device, a shape and no memory.

`Device` counts the bytes that live on the device, and how often the compute thread waits for it. An operation on
tensors of different devices, and a look at a number, are errors of the fake tensors themselves. Values are needed in
one place only, `swarmd/stage/transfer.py`, whose two ways are replaced: what comes from the device is zeros.

Imported after `load_guard`, in a process of its own.
"""

import contextlib
import ctypes
import importlib.util
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy


def load_guard(guard: Path) -> None:
    """Makes PyTorch believe in a CUDA device. Before torch is imported, since it asks for devices then."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    libraries = Path(spec.submodule_search_locations[0]) / "lib"
    for library in (libraries / "libc10.so", libraries / "libtorch_cpu.so", guard):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@dataclass(frozen=True)
class Card:
    """A kind of GPU: the dtype of its products, and the kernel of its attention."""

    name: str
    dtype: str  # bf16 or fp16
    attention: str  # flash, efficient or math
    memory: int = 16 << 30  # bytes, all of them free


CARDS = {
    card.name: card
    for card in (
        Card("sm_80", "bf16", "flash"),
        Card("sm_75", "fp16", "efficient"),
        Card("sm_75-math", "fp16", "math"),
    )
}


class Device:
    """What happens on the pretended device."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}  # bytes by storage
        self.now, self.peak = 0, 0
        self.waits: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()  # bytes, by way

    def see(self, tensor: Any) -> None:
        """Counts a tensor's memory, once, until it is gone."""
        import torch

        if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self.live:
            self.live[key] = nbytes
            self.now += nbytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key)

    @contextlib.contextmanager
    def measured(self) -> Iterator[dict[str, int]]:
        """Bytes held by what runs in the block, the peak of all bytes on the device meanwhile, and waits."""
        found: dict[str, int] = {}
        start, waits = self.now, self.waits.total()
        self.peak = self.now
        yield found
        found.update(held=self.now - start, peak=self.peak, waits=self.waits.total() - waits)


@contextlib.contextmanager
def pretended(card: Card) -> Iterator[Device]:
    """Everything in the block runs on a card: `cuda:0` for the engine."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from swarmd.stage import transfer

    device = Device()

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Sees every operation."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            torch.utils._pytree.tree_map_(device.see, made)
            if func.name() in ("aten::_to_copy", "aten::copy_"):
                source, target = (args[1], args[0]) if func.name() == "aten::copy_" else (args[0], made)
                if source.device.type != target.device.type:
                    device.waits[f"copy from {source.device.type} to {target.device.type}"] += 1
            return made

    def upload(data: Any, dtype: torch.dtype, to: torch.device) -> torch.Tensor:
        device.moved["up"] += memoryview(data).nbytes
        return torch.empty(memoryview(data).nbytes // dtype.itemsize, dtype=dtype, device=to)

    def download(tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        device.waits["download"] += 1
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        device.moved["down"] += sum(sizes)
        return tuple(numpy.zeros(size, numpy.uint8).data for size in sizes)  # nobody's memory until written to

    def synchronize(*_: object) -> None:
        device.waits["synchronize"] += 1

    with contextlib.ExitStack() as stack:
        for target, value in {
            "torch.cuda.device_count": lambda: 1,
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.is_bf16_supported": lambda *_: True,
            "torch.cuda.set_device": lambda _: None,
            "torch.cuda.mem_get_info": lambda _=None: (card.memory, card.memory),
            "torch.cuda.synchronize": synchronize,
            "torch.nn.functional.scaled_dot_product_attention": attention(card.attention),
            "torch.nn.Module.to_empty": to_empty,
            "swarmd.stage.device.look": lambda: sight(torch.__version__),
            "swarmd.stage.device.look_at_card": lambda _: described(card),
        }.items():
            stack.enter_context(mock.patch(target, value))
        stack.enter_context(mock.patch.object(transfer, "upload", upload))
        stack.enter_context(mock.patch.object(transfer, "download", download))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Watch())  # type: ignore[no-untyped-call]
        yield device


def sight(version: str) -> Any:
    """A machine with one card and a build of PyTorch for it."""
    from swarmd.stage.device import Sight

    return Sight(torch=version, cuda="13.0", kernels=("sm_75", "sm_80"), count=1, driver="580.65.06")


def described(card: Card) -> Any:
    """The card as PyTorch describes it: sm_75 is of capability (7, 5)."""
    from swarmd.stage import device

    digits = card.name.removeprefix("sm_")
    return device.Card(card.name, (int(digits[0]), int(digits[1])))


def to_empty(self: Any, *, device: Any) -> Any:
    """PyTorch's own exchanges two tensors' insides, which fake ones don't let it."""
    import torch

    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(parameter, device=device))
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty_like(buffer, device=device)
    return self


def attention(kernel: str) -> Any:
    """Causal attention by one kernel of CUDA's, which a build for CPUs would not choose."""
    import torch

    chosen = torch.nn.functional.scaled_dot_product_attention
    if kernel == "math":
        return chosen  # fake tensors take this way by themselves

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool) -> Any:
        assert is_causal
        if torch.is_autocast_enabled("cuda"):  # attention is among what it casts
            query, key, value = (it.to(torch.get_autocast_dtype("cuda")) for it in (query, key, value))
        if kernel == "flash":
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)[0]
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, True)[0]

    return fused
