"""From a scheduler's output to the tensors of a step."""

import torch

from numba_kernels import CpuKernels
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.schedule_output import ScheduledSequence, SchedulerOutput
from serve_paged.core.sequence import Sequence
from serve_paged.engine.batch import build_batch


def sequence(prompt: list[int], num_computed: int) -> Sequence:
    seq = Sequence("r", prompt, SamplingParams(), arrival_time=0.0, seed=0, max_num_tokens=100)
    seq.num_computed_tokens = num_computed
    seq.block_table = [3, 4]
    return seq


def test_a_token_that_the_host_does_not_know_yet_comes_from_the_samples_of_the_step_before() -> None:
    output = SchedulerOutput(
        scheduled=[
            ScheduledSequence(sequence([5, 6, 7], 3), 1, needs_token=True, pending_sample=1),
            ScheduledSequence(sequence([8, 9], 0), 2, needs_token=True),
            ScheduledSequence(sequence([10], 1), 1, needs_token=True, pending_sample=0),
        ]
    )
    batch = build_batch(output, 16, CpuKernels(), torch.tensor([70, 71]))
    assert batch.input_ids.tolist() == [71, 8, 9, 70]
    assert batch.positions.tolist() == [3, 0, 1, 1]
    assert batch.metadata.slot_mapping.tolist() == [3 * 16 + 3, 3 * 16, 3 * 16 + 1, 3 * 16 + 1]
