"""`swarmctl plan`: what it prints, as tables and as JSON, and what it says of mistakes."""

import contextlib
import io
import json
import re

import pytest

from swarmctl.app import run_command_line
from swarmd.printable import amount, money, share, span
from swarmd.sim.measure.plots import ticks

PEERS = "4xT4@200Mbps$0.35,1xA100@1Gbps$1.10"


def swarmctl(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command_line(list(arguments))
    return code, out.getvalue(), err.getvalue()


def test_a_plan_is_readable() -> None:
    code, out, err = swarmctl("plan", "--model", "tiny", "--peers", PEERS, "--rtt", "20")
    assert code == 0
    for text in ("tokens/s", "bottleneck", "best placement found", "T4@200Mbps", "uplink", "memory", "an hour"):
        assert text in out
    assert re.search(r"4-bit +[\d,]+ +not yet", out)
    assert "with more peers" in out
    assert "in proportion" in out  # the plot's legend
    axis = re.findall(r"^ *(\S+)┤", out, flags=re.MULTILINE)
    assert axis[-1] == "0"
    assert all(re.fullmatch(r"[1-9][\d,]*", number) for number in axis[:-1])
    assert "simulating: 4-bit on the wire" in err


def test_a_plan_as_json_is_one_object_on_stdout() -> None:
    code, out, _ = swarmctl("plan", "--model", "tiny", "--peers", PEERS, "--quick", "--json", "--steps", "7")
    assert code == 0
    plan = json.loads(out)
    assert plan["simulated"] is True
    assert plan["peers"] == sum(row["count"] for row in plan["outlook"]["rows"]) == 5
    assert plan["run_tokens"] == 7 * 32 * 128
    assert plan["wires"] == plan["growth"] == []
    assert plan["price_per_hour"] == pytest.approx(4 * 0.35 + 1.10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "4xT4"], "Missing option"),
        (["--model", "tiny", "--peers", "4xT5"], "no device is called T5"),
        (["--model", "tinny", "--peers", "4xT4"], "did you mean tiny"),
        (["--model", "tiny", "--peers", "1xT4"], "add peers"),
        (["--model", "tiny", "--peers", "4xT4", "--wire", "int3"], "--wire int3 is not known"),
        (["--model", "tiny", "--peers", "4xT4", "--compute", "fp8"], "--compute fp8 is not known"),
        (["--model", "tiny", "--peers", "4xT4", "--one-machine"], "swarmd profile"),
        (["--model", "tiny", "--peers", "4xT4", "--price", "L4=1"], "does not name"),
        (["--model", "tiny", "--peers", "4xT4", "--price", "T4=-1"], "where a number that is not negative should be"),
        (["--model", "tiny", "--peers", "4xT4@0Mbps"], "where a number over 0 should be"),
        (["--model", "tiny", "--peers", "2-4xT4"], "asks for 2-4 peers; give a whole number"),
        (["--model", "tiny", "--peers", "1.5xT4"], "asks for 1.5 peers; give a whole number"),
        (["--model", "tiny", "--peers", "-3xT4"], "asks for -3 peers; give a whole number"),
        (["--model", "tiny", "--peers", "0xT4"], "asks for 0 peers; give a whole number"),
        (["--model", "tiny", "--peers", "99999xT4"], "more than 10,000 peers"),
        (["--model", "tiny", "--peers", "4xT4", "--rtt", "60000"], "--rtt 60000 is more than 5,000 ms"),
        (["--model", "tiny", "--peers", "4xT4", "--rtt", "inf"], "--rtt inf is more than 5,000 ms"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], says: str) -> None:
    code, out, err = swarmctl("plan", *arguments)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("swarmctl: ")
    assert says in last


ABSURD = re.compile(
    r"\b0\.0+ (B|billion|days|s|Mb)|\d{4,}%|-\d|\b1 (peers|stages|steps|columns)|\d\.\d+e[+-]?\d", re.IGNORECASE
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--peers", "3xL4@100Mbps", "--steps", "1"],
        ["--peers", "4xH100@10Gbps$0.000001", "--steps", "2"],
        ["--peers", "1xL4@1Mbps$0", "--stages", "1", "--steps", "1"],
        ["--peers", "3xL4*0.0001@1Mbps$1000000", "--rtt", "5000"],
        ["--peers", "3xT4@1kbps"],
    ],
)
def test_a_plan_for_a_small_run_says_nothing_absurd(arguments: list[str]) -> None:
    code, out, err = swarmctl("plan", "--model", "tiny", "--quick", *arguments)
    assert not ABSURD.search(out + err), ABSURD.search(out + err)
    if code:
        assert code == 2
        assert "name faster links" in err
    else:
        (step,) = re.findall(r"^step +([^,\n]+)", out, flags=re.MULTILINE)
        assert not step.startswith("0 ")
        heads = [line for line in out.splitlines() if line.startswith("    0 ")]
        assert heads
        assert "--stages" in arguments or not [line for line in heads if " 0 b/s" in line], "a head sends"


@pytest.mark.parametrize(
    ("arguments", "cost"),
    [
        (["--peers", "2xT4$1,2xL4,1xA10"], "no price given for L4, A10"),
        (["--peers", "3xT4"], "no price given for T4"),
        (["--peers", "3xT4$0"], "nothing at these prices"),
        (["--peers", "3xT4", "--price", "T4=0"], "nothing at these prices"),
    ],
)
def test_a_cost_is_said_as_far_as_prices_are_known(arguments: list[str], cost: str) -> None:
    code, out, _ = swarmctl("plan", "--model", "tiny", "--quick", *arguments)
    assert code == 0
    assert re.search(rf"^cost +{re.escape(cost)}$", out, flags=re.MULTILINE)


def test_figures_of_a_plan_are_those_a_person_reads() -> None:
    assert [amount(count, "token") for count in (1, 12_288, 1_270_000, 1.2583e11, 3e12)] == [
        "1 token",
        "12,288 tokens",
        "1.27 million tokens",
        "125.83 billion tokens",
        "3.00 trillion tokens",
    ]
    assert [share(part) for part in (0.0, 0.001, 0.5, 0.999, 1.0, 1.2)] == ["0%", "<1%", "50%", ">99%", "100%", "120%"]
    assert [money(price) for price in (0, 0.001, 1.4, 102_728.2)] == ["0", "under 0.01", "1.40", "102,728"]
    assert [span(seconds) for seconds in (0.0, 1e-6, 0.0115, 0.552, 1.7, 59.94, 59.96, 4000)] == [
        "0 ms",
        "under 1 ms",
        "11.5 ms",
        "552 ms",
        "1.7 s",
        "59.9 s",
        "1 min 00 s",
        "1 h 06 min",
    ]


def test_a_plots_axis_has_round_numbers() -> None:
    assert ticks(29_676) == [0, 10_000, 20_000, 30_000]
    assert ticks(99.8) == [0, 50, 100]
    assert ticks(0.03) == pytest.approx([0, 0.01, 0.02, 0.03])
    assert ticks(0.0) == [0.0]
