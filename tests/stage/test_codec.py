"""Codecs: how far off they may be, and what bytes they refuse."""

import subprocess
import sys

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from swarmd.errors import NonFinite, PeerFault
from swarmd.stage.codec import BLOCK, available_codecs, check, decode, encode, is_surely_finite
from swarmd.values import Encoded

OWN = ("fp32", "fp16", "bf16", "int8")
RELATIVE_TO_BLOCK = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.5 / 127, "int8-bnb": 0.04}
"""Largest error over the largest magnitude of the block."""

tensors = st.builds(
    lambda shape, seed, exponent: torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent,
    st.lists(st.integers(0, 40), min_size=0, max_size=3).map(tuple),
    st.integers(0, 2**32),
    st.integers(-30, 30),
)


def received(encoded: Encoded) -> Encoded:
    """The same as it comes from the network: read-only bytes."""
    return Encoded(encoded.codec, encoded.shape, tuple(bytes(part) for part in encoded.data))


def round_trip(tensor: Tensor, codec: str) -> Tensor:
    return decode(received(encode(tensor, codec)))


@pytest.mark.parametrize("codec", OWN)
@given(tensor=tensors)
@settings(max_examples=60, deadline=None)
def test_what_arrives_is_what_was_sent_within_the_codecs_error(codec: str, tensor: Tensor) -> None:
    arrived = round_trip(tensor, codec)
    assert arrived.shape == tensor.shape
    assert arrived.dtype is torch.float32
    flat, back = tensor.double().flatten(), arrived.double().flatten()
    for start in range(0, flat.numel(), BLOCK):
        block, error = flat[start : start + BLOCK], (flat - back)[start : start + BLOCK]
        assert error.abs().max() <= RELATIVE_TO_BLOCK[codec] * 1.001 * block.abs().max() + 1e-44


def test_bitsandbytes_code_keeps_its_error_too() -> None:
    tensor = torch.randn(3, 4096, generator=torch.Generator().manual_seed(1))
    arrived = round_trip(tensor, "int8-bnb")
    assert (arrived - tensor).abs().max() <= RELATIVE_TO_BLOCK["int8-bnb"] * tensor.abs().max()
    assert torch.equal(round_trip(torch.zeros(5), "int8-bnb"), torch.zeros(5))


def test_bytes_per_element_are_those_we_state() -> None:
    tensor = torch.randn(4, 256, 512)
    per_element = {codec: encode(tensor, codec).nbytes / tensor.numel() for codec in available_codecs()}
    assert per_element == pytest.approx(
        {"fp32": 4.0, "fp16": 2.0078, "bf16": 2.0, "int8": 1.0078, "int8-bnb": 1.00098}, rel=1e-4
    )


@pytest.mark.parametrize("codec", ["fp16", "int8", "int8-bnb"])
@pytest.mark.parametrize("special", [0.0, 1e-42, 1e-38, 65_504.0, 1e5, 3.4e38])
def test_zeros_denormals_and_huge_values_neither_overflow_nor_become_nan(codec: str, special: float) -> None:
    tensor = torch.full((BLOCK + 3,), special)
    tensor[::2] *= -1
    arrived = round_trip(tensor, codec)
    assert bool(torch.isfinite(arrived).all())
    largest_code = 0.993 if codec == "int8-bnb" else 1.0  # bitsandbytes' code has 1, but not -1
    assert (arrived - tensor).abs().max() <= (1.001 - largest_code) * special + 1e-38


def test_fp16_keeps_gradient_sums_that_plain_halves_lose() -> None:
    tensor = torch.cat((torch.full((BLOCK,), 3e6), torch.full((BLOCK,), 3e-9)))
    assert bool(torch.isinf(tensor.half()).any())
    assert bool((tensor.half() == 0).any())
    torch.testing.assert_close(round_trip(tensor, "fp16"), tensor, rtol=5e-4, atol=0.0)


@pytest.mark.parametrize("codec", ["fp16", "int8", "int8-bnb"])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_infinities_and_nans_are_not_sent_where_a_scale_would_spread_them(codec: str, bad: float) -> None:
    tensor = torch.ones(2 * BLOCK)
    tensor[BLOCK + 1] = bad
    with pytest.raises(NonFinite):
        encode(tensor, codec)


@pytest.mark.parametrize("codec", OWN)
def test_a_tensor_larger_than_a_piece_and_strided_ones_survive(codec: str) -> None:
    tensor = torch.randn(700, 1111, generator=torch.Generator().manual_seed(2))
    whole = round_trip(tensor, codec)
    torch.testing.assert_close(whole, tensor, rtol=0.0, atol=0.05)
    transposed = round_trip(tensor.T, codec)
    torch.testing.assert_close(transposed, tensor.T, rtol=0.0, atol=0.05)


def test_decoding_shares_no_memory_with_the_bytes_and_takes_misaligned_ones() -> None:
    tensor = torch.arange(6, dtype=torch.float32)
    raw = bytearray(b"x" + bytes(encode(tensor, "fp32").data[0]))
    arrived = decode(Encoded("fp32", (6,), (memoryview(raw)[1:],)))
    raw[:] = bytes(len(raw))
    assert torch.equal(arrived, tensor)


def damaged() -> list[tuple[str, Encoded]]:
    good = received(encode(torch.randn(2, BLOCK), "int8"))
    codes, scales = good.data

    def scaled(value: float) -> bytes:
        return numpy.asarray([value, 1.0], dtype="<f4").tobytes()

    return [
        ("unknown codec", Encoded("int7", good.shape, good.data)),
        ("a codec that is a path", Encoded("../../etc", good.shape, good.data)),
        ("one scale too few", Encoded("int8", good.shape, (codes, bytes(scales)[:4]))),
        ("one code too many", Encoded("int8", good.shape, (bytes(codes) + b"x", scales))),
        ("no scales", Encoded("int8", good.shape, (codes,))),
        ("a buffer too many", Encoded("int8", good.shape, (codes, scales, b""))),
        ("shape of another size", Encoded("int8", (3, BLOCK), good.data)),
        ("negative size", Encoded("int8", (-2, -BLOCK), good.data)),
        ("size that is no number", Encoded("int8", (2, True, BLOCK), good.data)),
        ("too many dimensions", Encoded("int8", (1,) * 8 + good.shape, good.data)),
        ("absurd size", Encoded("int8", (1 << 32, 1 << 32), good.data)),
        ("absurd size times zero", Encoded("int8", (1 << 40, 0), ())),
        ("NaN scale", Encoded("int8", good.shape, (codes, scaled(float("nan"))))),
        ("infinite scale", Encoded("int8", good.shape, (codes, scaled(float("inf"))))),
        ("negative scale", Encoded("int8", good.shape, (codes, scaled(-1.0)))),
        ("bytes for nothing", Encoded("fp32", (0,), (b"1234",))),
    ]


@pytest.mark.parametrize(("what", "encoded"), damaged(), ids=[what for what, _ in damaged()])
def test_bytes_that_no_honest_peer_sends_are_its_fault(what: str, encoded: Encoded) -> None:
    with pytest.raises(PeerFault):
        decode(encoded)


@given(st.binary(max_size=64), st.sampled_from(OWN), st.lists(st.integers(-2, 20), max_size=3).map(tuple))
@settings(max_examples=150, deadline=None)
def test_random_bytes_never_do_worse_than_a_fault(raw: bytes, codec: str, shape: tuple[int, ...]) -> None:
    encoded = Encoded(codec, shape, (raw[:32], raw[32:]) if codec in ("int8", "fp16") else (raw,))
    try:
        decoded = decode(encoded)
    except PeerFault:
        return
    assert decoded.shape == shape
    assert check(encoded) == decoded.numel()


@pytest.mark.slow
def test_bitsandbytes_is_not_imported_before_it_is_chosen() -> None:
    program = (
        "import sys, torch; from swarmd.stage import codec, engine, optimizer; codec.available_codecs();"
        "codec.decode(codec.encode(torch.ones(9), 'int8')); assert 'bitsandbytes' not in sys.modules;"
        "codec.encode(torch.ones(9), 'int8-bnb'); assert 'bitsandbytes' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_scales_alone_say_that_a_tensor_is_finite() -> None:
    values = torch.linspace(-3, 3, 2 * BLOCK)
    assert is_surely_finite(encode(values, "int8"))
    assert not is_surely_finite(encode(values * 1e38, "int8")), "127 times the scale is near the end of fp32"
    for codec in ("fp32", "fp16", "bf16"):
        assert not is_surely_finite(encode(values, codec)), "its codes may be anything"
