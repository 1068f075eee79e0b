"""bitsandbytes, imported when it is first needed and not before: 1.6 s and 118 MB at import.

Knows only how to import it and which of its code tables is which; what is quantised is the business of `codec` and
`optimizer`.
"""

import functools
import importlib
import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor

from swarmd.errors import ConfigError


@functools.cache  # the codec asks for every tensor, and to look on the disk takes longer than to decode a small one
def is_installed() -> bool:
    """True if it could be imported. Imports nothing."""
    return importlib.util.find_spec("bitsandbytes") is not None


@functools.cache
def _functional() -> Any:
    # At import it warns of kernels for 4-bit products that it could not download; we use none of them.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise ConfigError("8-bit optimizers and int8-bnb need bitsandbytes; run pip install bitsandbytes.") from error


@functools.cache
def _code(signed: bool, device: torch.device) -> Tensor:
    """The 256 values of the dynamic code (Dettmers 2016), ascending from -1 (or 0 if unsigned) to 1."""
    code: Tensor = _functional().create_dynamic_map(signed=signed).to(device)
    return code


def quantise(flat: Tensor, block: int, *, signed: bool = True) -> tuple[Tensor, Tensor]:
    """uint8 codes [n] and each block's largest magnitude (fp32) of a flat fp32 tensor."""
    codes, state = _functional().quantize_blockwise(flat, code=_code(signed, flat.device), blocksize=block)
    return codes, state.absmax


def dequantise(codes: Tensor, scales: Tensor, block: int, *, signed: bool = True) -> Tensor:
    """The fp32 values of what `quantise` gave."""
    code = _code(signed, codes.device)
    values: Tensor = _functional().dequantize_blockwise(codes, absmax=scales, code=code, blocksize=block)
    return values
