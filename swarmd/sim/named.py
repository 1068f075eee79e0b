"""Scenarios that have a name: what a seed found, with the fewest faults and a line that tells it.

A test plays them all; `python -m swarmd.sim scenario NAME --transcript` shows one.
"""

from swarmd.config import LimitsConfig
from swarmd.sim.faults import Corruption, Crash, Cut, Join, Leave, Partition, Pause, PointFault, Preemption
from swarmd.sim.network import Link
from swarmd.sim.reference import Symbols
from swarmd.sim.scenario import Scenario

NAMED: dict[str, Scenario] = {
    "calm": Scenario(story="Two stages, two replicas each, and nothing happens: what a healthy run looks like."),
    "one-cut": Scenario(
        story="A connection breaks while both its ends live: what the holder counted must not count again elsewhere.",
        seed=153,
        replicas=(1, 2),
        microbatches=6,
        speeds=(0.024, 0.0067),
        link=Link(delay_s=0.015, bytes_per_second=4.5e6, jitter_s=0.045, loss=0.05),
        uplinks=(2.5e6, 1.5e6, 2.6e4),
        symbols=Symbols(activation_bytes=2048, state_bytes=20_000, spoiled=0.02),
        faults=(Cut(1.2, "tail2", "head1"),),
    ),
    "damaged-frames": Scenario(
        story="A tail's frames arrive damaged now and then: each costs a connection, and none may count twice.",
        seed=2,
        microbatches=3,
        steps=6,
        speeds=(0.0026, 0.02, 0.0086),
        link=Link(delay_s=0.043, bytes_per_second=4.4e7, jitter_s=0.021, loss=0.05),
        symbols=Symbols(activation_bytes=2048, state_bytes=500),
        faults=(Corruption(0.22, "tail1", 0.02, 2.3),),
    ),
    "head-without-power": Scenario(
        story="A head falls silent in a step, its leases are given again, and it comes back without its disk.",
        seed=4,
        replicas=(3, 1, 1),
        microbatches=12,
        speeds=(0.003, 0.04, 0.0062),
        faults=(Crash(0.86, "head1", power=True, back_s=4.4, disk=False),),
    ),
    "head-sleeps": Scenario(
        story="A head is stopped for longer than the others wait, and goes on with what it had.",
        seed=63,
        replicas=(4, 2, 2, 2),
        microbatches=34,
        steps=7,
        speeds=(0.002, 0.013, 0.06, 0.077),
        link=Link(delay_s=0.04, bytes_per_second=1.4e5, jitter_s=0.12),
        faults=(Pause(27.0, "head1", 23.0), Pause(40.0, "head1", 0.071)),
    ),
    "owner-sleeps-a-newcomer-comes": Scenario(
        story="The only tail is stopped while it reduces a part; meanwhile a newcomer takes its hops.",
        seed=7,
        replicas=(1, 1),
        microbatches=10,
        speeds=(0.0036, 0.075, 0.061),
        link=Link(delay_s=0.099, bytes_per_second=2.7e6, jitter_s=0.3),
        faults=(
            PointFault(0.0, "tail1", step=4, point="begin.reduce", action="pause", seconds=12.0),
            Join(6.0, "newcomer2", stage=1),
        ),
    ),
    "halves": Scenario(
        story="Two complete halves can't hear each other for a minute, with limits so tight that nothing is retained.",
        seed=16,
        microbatches=30,
        speeds=(0.055, 0.017, 0.0052, 0.071),
        link=Link(delay_s=0.03, bytes_per_second=2.2e6, loss=0.05),
        limits=LimitsConfig(in_flight_bytes=1, in_flight_hops=1, retained_bytes=0, held_gradients=2),
        faults=(Partition(14.0, (("head1", "tail2"), ("head2", "tail1")), 58.0),),
    ),
    "a-tail-leaves": Scenario(
        story="A tail says goodbye within a step, and what it had counted was evicted everywhere.",
        seed=194,
        replicas=(3, 1, 2),
        microbatches=3,
        speeds=(0.049, 0.072, 0.0024, 0.011),
        link=Link(delay_s=0.0059, bytes_per_second=6.5e6),
        limits=LimitsConfig(in_flight_bytes=1000, in_flight_hops=3, retained_bytes=0, held_gradients=1),
        faults=(Leave(2.9, "tail1"),),
    ),
    "custodians-and-holders": Scenario(
        story="A wave takes a head, a middle peer and a tail at once: holders, and those who could send again.",
        seed=122,
        replicas=(2, 3, 3),
        microbatches=5,
        speeds=(0.011, 0.013),
        link=Link(delay_s=0.0028, bytes_per_second=3.3e5, jitter_s=0.0014),
        uplinks=(2.6e6, 1.6e6, 4.6e6),
        limits=LimitsConfig(retained_bytes=400, held_gradients=2),
        symbols=Symbols(activation_bytes=2048, state_bytes=4000, spoiled=0.02),
        faults=(Preemption(0.79, ("head1", "head2", "middle2", "tail1")),),
    ),
    "the-first-round-loses-its-leaders": Scenario(
        story="Conductor and leader die in the round of step 1, with no record yet: who was frozen must thaw.",
        seed=285,
        replicas=(3, 1),
        microbatches=5,
        steps=6,
        speeds=(0.0059, 0.0081, 0.0037),
        link=Link(delay_s=0.089, bytes_per_second=1.9e6),
        symbols=Symbols(activation_bytes=128, state_bytes=500),
        faults=(Preemption(0.64, ("head1", "head2")),),
    ),
    "a-lease-gets-lost": Scenario(
        story="The connection breaks under the answer that gives a lease: the head never had it, and must get it.",
        replicas=(2, 1),
        faults=(PointFault(0.0, "head1", step=2, point="served.AskLease", action="cut", other="head2"),),
    ),
    "validation-loses-its-way": Scenario(
        story="A connection breaks under a validation hop: the peer between answers with a refusal.",
        seed=17,
        replicas=(4, 2, 2),
        microbatches=13,
        steps=7,
        speeds=(0.0081, 0.0059, 0.0043, 0.029),
        link=Link(delay_s=0.051, bytes_per_second=1.8e5, jitter_s=0.025),
        symbols=Symbols(state_bytes=500),
        validate_every=2,
        faults=(Cut(5.9, "middle1", "tail2"),),
    ),
}
