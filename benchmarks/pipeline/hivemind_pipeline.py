"""hivemind 1.1.12: an expert server per stage, and a client that sends microbatches through both. Runs in its own
environment.

Placement as in SWARM's published code: the embedding is in the first expert, the head and the loss in the second,
which gets the activation and the targets and answers with each sequence's loss. The client holds no layer; it moves
tensors, as hivemind's clients do. All tensors of floating point travel in 8 bits. A server recomputes forward in
backward, which is hivemind's design. Unlike its default, which steps the optimizer at every backward, ours here steps
once per global batch, like the other systems, and the client waits for that before it sends the next batch: what was
sent sooner would be computed on old parameters, and its loss would be another.

hivemind is untyped and absent from our environment: for mypy all of it is Any.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch.jit.script, at import of hivemind

from hivemind import DHT  # noqa: E402
from hivemind.moe import ModuleBackend, RemoteExpert, Server  # noqa: E402
from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker  # noqa: E402
from hivemind.moe.expert_uid import ExpertInfo  # noqa: E402
from hivemind.p2p import PeerID  # noqa: E402
from hivemind.proto.runtime_pb2 import CompressionType  # noqa: E402
from hivemind.utils.tensor_descr import BatchTensorDescriptor  # noqa: E402

from benchmarks.pipeline.workload import (  # noqa: E402
    Batches,
    load_workload,
    make_optimizer,
    parser,
    print_result,
    step_optimizer,
)
from swarmd.config import RunConfig  # noqa: E402
from swarmd.stage.model import StageModule, build_stage  # noqa: E402

CODEC = "UNIFORM_8BIT"  # the fastest of its codecs end to end on CPU, 16 and 32 bits included
IN_FLIGHT = 6  # microbatches the client keeps under way; fewer starve a stage, more change nothing
HANDLERS = 2  # connection handler processes of a server; more of them only share the same core
START_LIMIT_S = 60.0  # of a server


class SequenceLosses(torch.nn.Module):
    """The last stage with its loss: (activation [B, T, D], targets [B, T]) -> loss summed over each sequence [B]."""

    def __init__(self, stage: StageModule) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, activation: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.stage(activation)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape).sum(dim=1)


class GlobalBatchOptimizer:
    """The scheduler that hivemind calls after every backward; steps at the end of each global batch."""

    def __init__(self, module: torch.nn.Module, run: RunConfig) -> None:
        self.module, self.run = module, run
        self.optimizer = make_optimizer(module, run)
        self.backwards = 0

    def step(self) -> None:
        self.backwards += 1
        if self.backwards % self.run.microbatches == 0:
            step_optimizer(self.module, self.optimizer, self.run)

    def zero_grad(self) -> None:
        """Done by step."""


def make_backend(run: RunConfig, stage: int, codec: str) -> ModuleBackend:
    """One stage as an expert, with what travels in and out of it."""
    length, hidden = run.model.sequence_length, run.model.hidden
    compression = CompressionType.Value(codec)
    numbers = BatchTensorDescriptor(length, dtype=torch.int64)
    activation = BatchTensorDescriptor(length, hidden, dtype=torch.float32, requires_grad=True, compression=compression)
    layers = build_stage(run.model, stage, run.seed)
    module: torch.nn.Module = layers if stage == 0 else SequenceLosses(layers)
    losses = BatchTensorDescriptor(dtype=torch.float32, requires_grad=True)
    return ModuleBackend(
        name=f"stage.{stage}",
        module=module,
        optimizer=GlobalBatchOptimizer(module, run),
        args_schema=(numbers,) if stage == 0 else (activation, numbers),
        outputs_schema=activation if stage == 0 else losses,
        max_batch_size=run.sequences_per_microbatch,  # microbatches are not merged: the same ones as everywhere
    )


def serve(run: RunConfig, stage: int, codec: str, handlers: int) -> None:
    """Serves one stage until the process group is killed."""
    dht = DHT(host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    backend = make_backend(run, stage, codec)
    server = Server(dht, {backend.name: backend}, num_connection_handlers=handlers, device=torch.device("cpu"))
    server.run_in_background(await_ready=True, timeout=START_LIMIT_S)
    addresses = [str(address) for address in dht.get_visible_maddrs()]
    print(json.dumps({"peer_id": dht.peer_id.to_base58(), "addresses": addresses}), flush=True)
    server.join()


def start_servers(run: RunConfig) -> list[dict[str, Any]]:
    """Starts a server per stage; gives their peer ids and addresses."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pipeline.hivemind_pipeline", *sys.argv[1:], "--serve", str(stage)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for stage in range(run.model.stages)
    ]
    described = []
    for process in processes:
        watchdog = threading.Timer(START_LIMIT_S, process.kill)  # ends the read below
        watchdog.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise SystemExit("a hivemind server did not start")
        described.append(json.loads(line))
    return described


def drive(run: RunConfig, batches: Batches, warmup: int, steps: int, in_flight: int) -> None:
    """Sends every microbatch forward and backward through both servers and prints the result."""
    servers = start_servers(run)
    dht = DHT(initial_peers=[address for server in servers for address in server["addresses"]], start=True)
    p2p = RemoteExpertWorker.run_coroutine(dht.replicate_p2p())
    head, tail = (
        RemoteExpert(ExpertInfo(f"stage.{stage}", PeerID.from_base58(server["peer_id"])), p2p)
        for stage, server in enumerate(servers)
    )
    for expert in (head, tail):
        assert expert.info, "its schema: asked for once here, not by every thread"

    def train(number: int) -> tuple[float, float]:
        """One microbatch there and back: when it was done, and its loss."""
        tokens, targets = batches.microbatch(*divmod(number, run.microbatches))
        loss = tail(head(tokens), targets).sum()
        loss.backward()
        return time.perf_counter(), loss.item()

    def train_batch(step: int) -> tuple[float, float]:
        """One global batch: when the last of it was done, and the sum of its losses."""
        numbers = range(step * run.microbatches, (step + 1) * run.microbatches)
        done, losses = zip(*pool.map(train, numbers), strict=True)
        return max(done), sum(losses)

    with ThreadPoolExecutor(in_flight) as pool:
        ends, losses = zip(*map(train_batch, range(warmup + steps)), strict=True)
    seconds, tokens = ends[-1] - ends[warmup - 1], run.microbatches * run.tokens_per_microbatch
    print_result(run, steps, seconds, losses[-1] / tokens)
    dht.shutdown()


def main() -> None:
    """The client, or with --serve one server."""
    arguments_parser: argparse.ArgumentParser = parser(__doc__)
    arguments_parser.add_argument("--serve", type=int, help="stage to serve; given to the servers only")
    arguments_parser.add_argument("--codec", default=CODEC, help="one of hivemind's compression types")
    arguments_parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="microbatches under way")
    arguments_parser.add_argument("--handlers", type=int, default=HANDLERS, help="connection handlers of a server")
    arguments = arguments_parser.parse_args()
    run = load_workload(arguments.model)
    if arguments.serve is not None:
        serve(run, arguments.serve, arguments.codec, arguments.handlers)
    else:
        drive(run, Batches(arguments.batches), arguments.warmup, arguments.steps, arguments.in_flight)


if __name__ == "__main__":
    main()
