"""The loss of held-out tokens: computed forward, from stage to stage, and nothing is believed that can't be."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarmd.config import ModelConfig, RunConfig
from swarmd.errors import NonFinite, PeerUnreachable, Refused
from swarmd.swarm.hops.custodian import Custodian
from swarmd.swarm.hops.validation import Validation
from swarmd.swarm.ports import Data
from swarmd.swarm.wire.messages.hop import Hop, Loss
from swarmd.values import Encoded, HopId, TailResult
from tests.swarm.contexts import stage_context

RUN = RunConfig("toy", ModelConfig(8, 8, 4000, 1, 3, 3, 8), validation_microbatches=2)
TAIL = RUN.model.stages - 1
OUT = Encoded("fp16", (1,), (b"xx",))


class Device:
    """Remembers what it was asked for."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.codecs, self.trouble, self.evaluated = ("fp16",), trouble, list[HopId]()

    async def forward(self, key: HopId, tokens: bytes, activation: Encoded | None, **options: Any) -> Encoded:
        assert options == {"codec": "fp16", "evaluate": True}
        self.evaluated.append(key)
        return OUT

    async def tail(self, key: HopId, tokens: bytes, activation: Encoded | None, **options: Any) -> TailResult:
        assert options["evaluate"]
        if self.trouble is not None:
            raise self.trouble
        self.evaluated.append(key)
        return TailResult(6.0, 3, None, False)


class Stage:
    """A peer's validation, and what it sends to the next stage."""

    def __init__(self, stage: int, answers: list[Any] | None = None, device: Device | None = None) -> None:
        self.answers, self.sent, self.device = answers or [], list[tuple[str, Hop]](), device or Device()
        custodian: Any = SimpleNamespace(
            codec=lambda own: own[0], message=self._message, choose=self._choose, address=lambda hop, holder: hop
        )
        links = SimpleNamespace(ask=self._ask)
        context = stage_context(run=RUN, links=links, compute=self.device, stage=stage)
        self.validation = Validation(context, cast("Custodian", custodian))

    def _message(self, key: HopId, tokens: bytes, out: Encoded, *, again: bool, evaluate: bool) -> Hop:
        assert evaluate and not again
        return Hop(key.step, key.index, "", again, evaluate, "fp32", tokens, out, 0.0, 1)

    async def _choose(self, hop: Hop) -> str:
        return "next"

    async def _ask(self, peer: str, hop: Hop, **options: Any) -> Loss:
        self.sent.append((peer, hop))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast("Loss", answer)


class HeldOut:
    async def held_out(self, index: int) -> bytes:
        return bytes([index])


DATA = cast("Data", HeldOut())


async def test_the_mean_is_over_tokens_and_beyond_the_indices_that_are_trained() -> None:
    it = Stage(0, [Loss(10.0, 4), Loss(2.0, 2)])
    assert await it.validation.mean_loss(DATA, 7) == 2.0
    assert it.device.evaluated == [HopId(8, RUN.microbatches), HopId(8, RUN.microbatches + 1)]
    assert [(peer, hop.tokens, hop.activation) for peer, hop in it.sent] == [
        ("next", b"\x00", OUT),
        ("next", b"\x01", OUT),
    ]


@pytest.mark.parametrize(
    "answers",
    [
        [Loss(1.0, 1), PeerUnreachable("gone")],
        [Loss(1.0, 0), Loss(1.0, 0)],
        [Loss(math.nan, 1), Loss(1.0, 1)],
        [Loss(math.inf, 1), Loss(1.0, 1)],
        [Loss(-3.0, 1), Loss(1.0, 1)],
        [TimeoutError()],
        [Refused("no")],
    ],
)
async def test_there_is_none_where_one_can_not_be_had_or_is_no_loss(answers: list[Any]) -> None:
    assert await Stage(0, answers).validation.mean_loss(DATA, 7) is None


async def test_the_tail_answers_by_itself() -> None:
    it = Stage(TAIL)
    hop = Hop(8, 70, "", False, True, "fp32", b"", OUT, 0.0, TAIL)
    assert (await it.validation.answer(hop), it.sent) == (Loss(6.0, 3), [])


@pytest.mark.parametrize("trouble", [NonFinite("loss"), PeerUnreachable("gone"), TimeoutError()])
async def test_what_fails_further_on_is_refused_with_a_sentence(trouble: Exception) -> None:
    hop = Hop(8, 70, "", False, True, "fp32", b"", OUT, 0.0, TAIL)
    with pytest.raises(Refused, match="no validation loss from the next stage"):
        await Stage(TAIL, device=Device(trouble)).validation.answer(hop)
