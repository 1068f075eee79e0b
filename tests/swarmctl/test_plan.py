"""`swarmctl plan`: what it prints, as tables and as JSON, and what it says of mistakes."""

import contextlib
import io
import json

import pytest

from swarmctl.app import run_command_line

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
    assert "4-bit (not in swarmd yet)" in out
    assert "with more peers" in out
    assert "in proportion" in out  # the plot's legend
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
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], says: str) -> None:
    code, out, err = swarmctl("plan", *arguments)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("swarmctl: ")
    assert says in last
