"""The scheduler under random load: memory is right, nothing leaks, nobody is lost or starved."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.core.scheduler_machine import SWAP_NEVER, SchedulerMachine, Setting

SETTINGS = {
    "tiny": Setting(num_blocks=4, num_host_blocks=3),
    "one token a block": Setting(num_blocks=12, num_host_blocks=60, block_size=1),
    "small host tier": Setting(num_blocks=8, num_host_blocks=5),
    "large host tier": Setting(num_blocks=9, num_host_blocks=60, preemption="auto"),
    "copies are dear": Setting(num_blocks=9, num_host_blocks=60, preemption="auto", block_s=SWAP_NEVER),
    "no host tier": Setting(num_blocks=10, num_host_blocks=0),
    "no prefix cache": Setting(num_blocks=8, num_host_blocks=8, prefix_caching=False),
    "roomy": Setting(num_blocks=40, num_host_blocks=8, block_size=2),
}


def run(setting: Setting, *, num_examples: int, num_steps: int) -> Counter[str]:
    """Random lives of an engine; how often each kind of event came up."""
    events: Counter[str] = Counter()

    class CountedMachine(SchedulerMachine):
        def teardown(self) -> None:
            super().teardown()
            if hasattr(self, "engine"):
                stats = self.engine.scheduler.stats
                events["recompute"] += stats.num_preemptions_recompute
                events["swap"] += stats.num_preemptions_swap
                events["swapped in"] += stats.num_swapped_in_blocks
                events["copied"] += stats.num_copied_blocks
                events["cached"] += stats.num_cached_tokens
                events["refused"] += self.num_refused
                events["wasted"] += self.engine.num_wasted_tokens
                events.update(stats.num_finished)

    CountedMachine.setting = setting
    profile = settings(
        max_examples=num_examples,
        stateful_step_count=num_steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(CountedMachine, settings=profile)
    return events


@pytest.mark.parametrize("run_ahead", [False, True], ids=["in step", "ahead"])
@pytest.mark.parametrize("name", SETTINGS)
def test_any_sequence_of_events_leaves_every_invariant_intact(name: str, run_ahead: bool):
    setting = replace(SETTINGS[name], run_ahead=run_ahead)
    events = run(setting, num_examples=40, num_steps=30)
    assert events["copied"] > 0 or setting.block_size == 1, "this load forks nothing"
    assert run_ahead <= (events["wasted"] > 0), "nothing ended while a step for it was in flight"
    if name == "roomy":
        return
    if setting.num_host_blocks and setting.block_s != SWAP_NEVER:
        assert events["swap"] > 0, "this load swaps nothing"
        assert events["swapped in"] > 0, "this load never comes back from the host"
    else:
        assert events["swap"] == 0
        assert events["recompute"] > 0, "this load preempts nobody"


@pytest.mark.slow
@pytest.mark.parametrize("run_ahead", [False, True], ids=["in step", "ahead"])
@pytest.mark.parametrize("name", SETTINGS)
def test_many_long_sequences_of_events_leave_every_invariant_intact(name: str, run_ahead: bool):
    run(replace(SETTINGS[name], run_ahead=run_ahead), num_examples=150, num_steps=60)
