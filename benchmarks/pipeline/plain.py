"""Plain PyTorch: the whole model in one process, microbatches accumulated, one optimizer step per global batch.

The figure that everything else is divided by. It runs with as many threads as the two stages of a pipeline have
together.
"""

import time

import torch

from benchmarks.pipeline.workload import (
    Batches,
    load_workload,
    make_optimizer,
    parser,
    print_result,
    step_optimizer,
)
from swarmd.stage.model import build_whole, loss_sum


def main() -> None:
    """Trains and prints tokens, seconds and loss of the measured steps."""
    arguments = parser(__doc__).parse_args()
    run, batches = load_workload(arguments.model), Batches(arguments.batches)
    module = build_whole(run.model, run.seed)
    optimizer = make_optimizer(module, run)
    begin, total = 0.0, 0.0
    for step in range(arguments.warmup + arguments.steps):
        if step == arguments.warmup:
            begin = time.perf_counter()
        total = 0.0
        for index in range(run.microbatches):
            tokens, targets = batches.microbatch(step, index)
            loss = loss_sum(module(tokens), targets)
            torch.autograd.backward(loss)
            total += loss.item()
        step_optimizer(module, optimizer, run)
    seconds = time.perf_counter() - begin
    print_result(run, arguments.steps, seconds, total / (run.microbatches * run.tokens_per_microbatch))


if __name__ == "__main__":
    main()
