"""Whether torch can compute on a card, and the sentence if it can't, from what torch and the system are made to say."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from swarmd.errors import ConfigError
from swarmd.stage import device as cards
from swarmd.stage.device import AMD, NVIDIA, Card, Sight, check_device, has_kernels, obstacle, obstacle_of_card

INSTALL = "`pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl"
CPU = "--device cpu computes without the card"
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
V100 = Card("Tesla V100-SXM2-16GB", (7, 0))


@pytest.mark.parametrize(
    ("capability", "kernels", "runs"),
    [
        ((7, 5), CU130, True),
        ((7, 0), CU130, False),
        ((8, 9), CU130, True),  # of sm_86: later ones of the same major number
        ((8, 0), ("sm_86",), False),
        ((9, 0), ("sm_80", "sm_86"), False),  # machine code of another major number
        ((12, 1), CU130, True),
        ((13, 0), CU130, True),  # PTX
        ((13, 0), CU130[:-1], False),
        ((11, 0), CU130, False),  # PTX is for later cards
        ((9, 0), ("compute_80",), True),
        ((9, 0), ("compute_90a",), True),
        ((10, 0), ("compute_90a", "sm_90a"), False),
        ((10, 3), ("sm_100f",), True),
        ((12, 0), ("compute_100f",), False),
        ((8, 7), ("sm_80", "sm_86"), False),  # a Tegra board
        ((8, 7), ("sm_87",), True),
        ((8, 9), ("sm_87",), False),
        ((8, 7), ("compute_80",), True),
        ((8, 0), (), False),
        ((8, 0), ("gfx90a", "sm_", "sm_8", "sm_80x"), False),
    ],
)
def test_code_runs_on_a_card(capability: tuple[int, int], kernels: tuple[str, ...], runs: bool) -> None:
    assert has_kernels(capability, kernels) is runs


def test_the_rule_is_torch_s_own_for_machine_code() -> None:
    from torch.cuda import DEVICE_REQUIREMENT

    every = sorted(DEVICE_REQUIREMENT)
    ours = {(card, code) for card in every for code in every if has_kernels(divmod(card, 10), (f"sm_{code}",))}
    theirs = {(card, code) for card in every for code in every if card in DEVICE_REQUIREMENT[code]}
    assert ours ^ theirs <= {(110, 101)}  # one board under its old and its new number


CPUS = Sight("2.13.0+cpu")
BUILD = Sight("2.13.0+cu130", cuda="13.0", kernels=CU130, driver="580.65.06", vendors=frozenset({NVIDIA}))


@pytest.mark.parametrize(
    ("sight", "words"),
    [
        (
            Sight("2.13.0+cpu", driver="580.65.06"),
            (
                "the installed torch 2.13.0+cpu is PyTorch's build for CPUs, and this machine has an NVIDIA card: "
                f"{INSTALL}/cu130` gets the build for it; {CPU}."
            ),
        ),
        (Sight("2.13.0+cpu", vendors=frozenset({NVIDIA})), "`pip install --force-reinstall torch==2.13.0"),
        (Sight("2.13.0+cpu", vendors=frozenset({AMD})), "https://pytorch.org/get-started/locally has the command"),
        (CPUS, "this machine shows no card; use --device cpu."),
        (
            Sight("2.13.0", cuda="13.0", trouble="The NVIDIA driver is too old", driver="535.183.01"),
            (
                "its driver 535.183.01 is too old for the installed torch 2.13.0: install NVIDIA's driver 580 or newer "
                f"(`nvidia-smi` then says so), or {INSTALL}/cu126` gets a build for this one; {CPU}."
            ),
        ),
        (
            Sight("2.13.0", cuda="13.0", trouble="too old", driver="470.1"),
            "driver 580 or newer (`nvidia-smi` then says so); --device cpu",
        ),
        (
            Sight("2.13.0", cuda="12.6", trouble="too old", driver="515.1"),
            "driver 525 or newer (`nvidia-smi` then says so); --device cpu",
        ),
        (
            Sight("2.13.0", cuda="13.0", trouble="Found no NVIDIA driver", vendors=frozenset({NVIDIA})),
            "NVIDIA's driver is not loaded (Found no NVIDIA driver): install it, until `nvidia-smi` lists the card;",
        ),
        (
            Sight("2.13.0", cuda="13.0", trouble="Found no driver"),
            "this machine shows no NVIDIA card (Found no driver);",
        ),
        (
            Sight("2.13.0", cuda="13.0", trouble="CUDA unknown error", driver="580.1"),
            "torch says: CUDA unknown error; `nvidia-smi` shows how the card is;",
        ),
        (
            Sight("2.13.0", hip="7.1", trouble="No HIP GPUs are available"),
            "No HIP GPUs are available; `rocminfo` shows",
        ),
        (Sight("2.13.0", cuda="13.0", count=1), "torch sees only cuda:0; `nvidia-smi` lists"),
        (Sight("2.13.0", cuda="13.0", count=3), "torch sees only cuda:0 to cuda:2; `nvidia-smi` lists"),
        (Sight("2.13.0", hip="7.1", count=1), "torch sees only cuda:0; `rocminfo` lists"),
        (
            Sight("2.13.0", cuda="13.0", count=1, hidden="2"),
            "torch sees only cuda:0, as CUDA_VISIBLE_DEVICES is '2'; `unset CUDA_VISIBLE_DEVICES` shows it all.",
        ),
        (Sight("2.13.0", cuda="13.0", hidden=""), "torch sees no card, as CUDA_VISIBLE_DEVICES is '';"),
        (Sight("2.13.0", cuda="13.0", count=8), ""),
    ],
)
def test_a_card_that_torch_does_not_see(sight: Sight, words: str) -> None:
    said = obstacle(7, sight)
    assert words in said
    assert bool(words) is bool(said)


@pytest.mark.parametrize(
    ("card", "sight", "words"),
    [
        (
            V100,
            BUILD,
            (
                "it is a Tesla V100-SXM2-16GB (compute capability 7.0), for which the installed torch 2.13.0+cu130 has "
                "no kernels (sm_75, sm_80, sm_86, sm_90, sm_100, sm_120, compute_120): "
                f"{INSTALL}/cu126` gets a build that has; {CPU}."
            ),
        ),
        (Card("Tesla K80", (3, 7)), BUILD, "nor has any other build; --device cpu"),
        (Card("H100", (9, 0)), Sight("2.9.0+own", cuda="13.0", kernels=("sm_80",)), "whl/cu130` gets a build that has"),
        (V100, Sight("2.13.0+cu126", cuda="12.6", kernels=("sm_50",)), "or `pip install --upgrade torch`;"),
        (Card("Radeon", arch="gfx1032"), Sight("2.13.0", hip="7.1", kernels=("gfx90a",)), "gfx1032), for which"),
        (Card("MI250", arch="gfx90a"), Sight("2.13.0", hip="7.1", kernels=("gfx90a",)), ""),
        (Card("H200", (9, 0)), BUILD, ""),
    ],
)
def test_a_card_that_torch_sees(card: Card, sight: Sight, words: str) -> None:
    said = obstacle_of_card(0, card, sight)
    assert words in said
    assert bool(words) is bool(said)


def pretend(monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int], count: int = 1) -> None:
    """torch as it speaks where there are such cards."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(CU130))
    found = SimpleNamespace(name="Tesla", major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: found)


def test_a_device_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(9, 0), count=2)
    assert check_device("cuda") == torch.device("cuda", 0)
    assert check_device("cuda:1") == torch.device("cuda", 1)
    assert check_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"^device cuda:2 can't be used: torch sees only cuda:0 to cuda:1"):
        check_device("cuda:2")


def test_a_device_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(7, 0))
    with pytest.raises(ConfigError, match=r"^device cuda:0 can't be used: it is a Tesla \(compute capability 7\.0\)"):
        check_device("cuda")


def test_what_torch_raises_when_cuda_is_made_ready_is_in_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA unknown error\nand many lines more")

    pretend(monkeypatch, capability=(9, 0))
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(cards, "_driver", lambda: "580.65")
    with pytest.raises(
        ConfigError, match=r"^device cuda:0 can't be used: torch says: CUDA unknown error; `nvidia-smi`"
    ):
        check_device("cuda")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mps", "device mps is not known: swarmd doesn't compute on Apple's GPUs (MPS); use --device cpu."),
        ("rocm:1", "device rocm:1 is not known: under ROCm torch calls an AMD card cuda:N, too; use --device cuda:0."),
        ("gpu", "device gpu is not known: a card is called cuda:N; use --gpu 0 or --device cuda:0."),
        ("tpu", "device tpu is not known: use cpu or cuda:N."),
        ("cuda:", "device cuda: is not known: use cpu or cuda:N."),
        ("cuda:-1", "device cuda:-1 is not known: use cpu or cuda:N."),
        ("cuda:²", "device cuda:² is not known: use cpu or cuda:N."),
    ],
)
def test_a_name_that_is_no_device_s(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_device(name)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("something else", ""),
        (None, ""),
    ],
)
def test_the_driver_s_version(text: str | None, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        (tmp_path / "version").write_text(text)
    monkeypatch.setattr(cards, "DRIVER_FILE", str(tmp_path / "version"))
    assert cards.look().driver == version


def test_the_makers_of_the_cards_in_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind, vendor in (("a", "0x030200", NVIDIA), ("b", "0x020000", "0x15b3"), ("c", "0x120000", AMD)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "class").write_text(f"{kind}\n")
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "d").mkdir()
    monkeypatch.setattr(cards, "PCI", tmp_path)
    assert cards.look().vendors == {NVIDIA, AMD}
    monkeypatch.setattr(cards, "PCI", tmp_path / "none")
    assert cards.look().vendors == frozenset()
