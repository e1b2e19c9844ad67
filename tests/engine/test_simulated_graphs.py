"""A simulated graph does what a captured one does: the same operations over the same memory, and no Python."""

import pytest
import torch

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.cuda_runner import decode_buckets
from serve_paged.engine.graphs import Graphs, Replay
from serve_paged.engine.offline import generate
from serve_paged.engine.simulated_graphs import CapturableLauncher, CapturedWait, SimulatedGraphs
from tests.engine.lookback_model import lookback_config, prompt_of
from tests.engine.simulated_gpu import simulated_engine


@pytest.fixture
def graphs() -> SimulatedGraphs:
    return SimulatedGraphs(CapturableLauncher())


def test_a_replay_reads_what_its_inputs_hold_now(graphs: SimulatedGraphs) -> None:
    ids, table, out = torch.tensor([0, 1]), torch.randn(4, 3), torch.zeros(2, 3)

    def run() -> None:
        halves = table[ids].view(2, 3).mul(0.5)
        halves[:, 0] += 1.0
        out.copy_(halves)

    replay = graphs.capture(run)
    ids.copy_(torch.tensor([3, 2]))
    out.zero_()
    replay()
    assert torch.equal(out, table[[3, 2]] * 0.5 + torch.tensor([1.0, 0.0, 0.0]))


def test_a_number_of_the_host_stays_what_it_was_at_the_capture(graphs: SimulatedGraphs) -> None:
    out, scale = torch.ones(1), [2.0]
    replay = graphs.capture(lambda: out.mul_(scale[0]))
    scale[0] = 100.0
    out.fill_(1.0)
    replay()
    assert out.item() == 2.0


def test_waiting_for_the_device_inside_a_capture_is_an_error(graphs: SimulatedGraphs) -> None:
    out = torch.ones(3)
    with pytest.raises(CapturedWait, match="_local_scalar_dense"):
        graphs.capture(lambda: out.mul_(out.max().item()))


class Uncaptured:
    """Runs the function again: each operation by itself, and all of the host's part."""

    def capture(self, run: Replay) -> Replay:
        run()
        return run


def test_replayed_steps_are_bitwise_those_of_their_operations_one_by_one() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=5)
    prompts = [prompt_of(seed, 3) for seed in range(3)]  # three of four rows: the last is padding

    def run(graphs: Graphs | None) -> list[object]:
        engine = simulated_engine(
            lookback_config(), torch.bfloat16, graphs=graphs, num_blocks=8, max_num_seqs=4, max_num_batched_tokens=16
        )
        completions = generate(engine, prompts, params)
        return [(completion.token_ids, completion.logprobs) for completion in completions]

    assert run(None) == run(Uncaptured())


def test_buckets_go_up_to_the_largest_step_and_no_further() -> None:
    assert decode_buckets(1) == (1,)
    assert decode_buckets(4) == (1, 2, 4)
    assert decode_buckets(20) == (1, 2, 4, 8, 16, 20)
    assert decode_buckets(32) == (1, 2, 4, 8, 16, 24, 32)
