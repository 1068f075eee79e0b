"""Memory of what nobody refers to any more goes back to the device and to the system."""

import gc

import torch

from swarmd.memory import give_back


def release(device: torch.device) -> None:
    """Frees cycles, hands the blocks that torch's allocator keeps on a device back to its driver, and those of the C
    library to the system. To be called in the thread that used the device, after the last reference is gone.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    give_back()
