"""torch.distributed.pipelining: a process per stage over gloo, fp32 on the wire, with the GPipe or the 1F1B schedule.

The process that is started is stage 0 and starts stage 1 itself. Each stage steps its own optimizer after every
global batch.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from benchmarks.pipeline.workload import (
    Batches,
    load_workload,
    make_optimizer,
    parser,
    print_result,
    step_optimizer,
)
from swarmd.config import RunConfig
from swarmd.stage.model import build_stage, loss_sum

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
GLOO_TIMEOUT = timedelta(seconds=120)  # many times a step


def train_stage(
    run: RunConfig, batches: Batches, rank: int, schedule: str, warmup: int, steps: int
) -> tuple[float, float]:
    """Runs one stage; gives the seconds of the measured steps and the loss of the last, on both."""
    module = build_stage(run.model, rank, run.seed)
    optimizer = make_optimizer(module, run)
    stage = PipelineStage(module, rank, run.model.stages, torch.device("cpu"))
    pipeline = SCHEDULES[schedule](stage, run.microbatches, loss_fn=loss_sum, scale_grads=False)
    begin = 0.0
    losses: list[torch.Tensor] = []
    for step in range(warmup + steps):
        if step == warmup:
            dist.barrier()
            begin = time.perf_counter()
        pairs = [batches.microbatch(step, index) for index in range(run.microbatches)]
        losses.clear()
        if rank == 0:
            pipeline.step(torch.cat([tokens for tokens, _ in pairs]), return_outputs=False)
        else:
            targets = torch.cat([targets for _, targets in pairs])
            pipeline.step(target=targets, losses=losses, return_outputs=False)
        step_optimizer(module, optimizer, run)
    dist.barrier()
    seconds = time.perf_counter() - begin
    loss = torch.tensor([sum(each.item() for each in losses)], dtype=torch.float64)
    dist.broadcast(loss, src=run.model.stages - 1)
    return seconds, loss.item() / (run.microbatches * run.tokens_per_microbatch)


def main() -> None:
    """Stage 0: starts stage 1, trains, prints the result. Stage 1: trains."""
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--schedule", choices=sorted(SCHEDULES), required=True)
    arguments_parser.add_argument("--join", help="rendezvous file; given to stage 1 only")
    arguments = arguments_parser.parse_args()
    run = load_workload(arguments.model)
    assert run.model.stages == 2, "this comparison is between pipelines of two stages"
    with tempfile.TemporaryDirectory() as folder:
        meeting = arguments.join or str(Path(folder) / "rendezvous")
        rank = 1 if arguments.join else 0
        other = None if arguments.join else subprocess.Popen([*_own_command(), "--join", meeting])
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=GLOO_TIMEOUT)
        seconds, loss = train_stage(
            run, Batches(arguments.batches), rank, arguments.schedule, arguments.warmup, arguments.steps
        )
        dist.destroy_process_group()
        if other is not None:
            print_result(run, arguments.steps, seconds, loss)
            other.wait(timeout=GLOO_TIMEOUT.total_seconds())


def _own_command() -> list[str]:
    return [sys.executable, "-m", "benchmarks.pipeline.torch_pipelining", *sys.argv[1:]]


if __name__ == "__main__":
    main()
