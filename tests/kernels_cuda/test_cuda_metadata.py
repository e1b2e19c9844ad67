"""A step's batch on the device: sent at once for eager steps, kept at fixed addresses for captured ones."""

import numpy as np
import pytest
import torch
from torch import Tensor

from numba_kernels import KVLayout
from numba_kernels.cuda.decode_buffers import DecodeBuffers
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from numba_kernels.cuda.simulator import LaunchFault
from numba_kernels.cuda.staging import send
from tests.kernels_cuda.batches import BLOCK_SIZE, LAYER, SCALE, Step, random_step


@pytest.fixture
def kernels() -> CudaKernels:
    return CudaKernels(SimulatedLauncher())


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def update(buffers: DecodeBuffers, step: Step, sampled_rows: Tensor | None = None) -> None:
    positions = step.seq_lens.long() - 1
    ids = torch.arange(len(positions)) + 100
    buffers.update(step.block_tables[:, :-1], step.slot_mapping, step.seq_lens, positions, ids, sampled_rows)


def replay(kernels: CudaKernels, buffers: DecodeBuffers, step: Step, *, window: int | None = None) -> Tensor:
    """What a captured graph does: attention over the buffers, for the whole bucket."""
    q = torch.zeros(buffers.num_seqs, *step.q.shape[1:], dtype=step.q.dtype)
    q[: len(step.q)] = step.q
    arguments = (q, step.kv_cache, LAYER, buffers.metadata)
    return kernels.paged_attention(*arguments, scale=SCALE, layout=KVLayout.STANDARD, sliding_window=window)


class CountingLauncher(SimulatedLauncher):
    num_copies = 0

    def upload(self, host: Tensor, memory: Tensor) -> None:
        self.num_copies += 1
        super().upload(host, memory)


def test_small_arrays_go_in_one_copy_each_aligned_for_the_kernels() -> None:
    launcher = CountingLauncher()
    arrays = {"a": np.arange(3, dtype=np.int32), "b": np.array([[-1], [2**40]]), "c": np.zeros((0, 4), np.int32)}
    sent = send(launcher, arrays)
    assert launcher.num_copies == 1
    assert sent["a"].tolist() == [0, 1, 2]
    assert sent["b"].tolist() == [[-1], [2**40]]
    assert sent["c"].shape == (0, 4)
    assert (sent["b"].data_ptr() - sent["a"].data_ptr()) % 16 == 0


def test_a_captured_step_gives_the_bits_of_an_eager_one_and_padding_gives_zero(kernels: CudaKernels) -> None:
    step = random_step([(1, 37), (1, 300)])
    buffers = kernels.decode_buffers(4, 512, BLOCK_SIZE)
    update(buffers, step)
    out = replay(kernels, buffers, step)
    assert torch.equal(out[:2], step.attend(kernels))
    assert not out[2:].any()


def test_the_same_addresses_serve_one_step_after_another(kernels: CudaKernels) -> None:
    buffers = kernels.decode_buffers(3, 512, BLOCK_SIZE, windows=(None, 40))
    before = [tensor.data_ptr() for tensor in (buffers.input_ids, buffers.positions, buffers.metadata.block_tables)]
    for sequences in ([(1, 300), (1, 20), (1, 16)], [(1, 17)], [(1, 90), (1, 33)]):
        step = random_step(sequences)
        update(buffers, step)
        for window in (None, 40):
            eager = step.attend(kernels, window=window)
            assert torch.equal(replay(kernels, buffers, step, window=window)[: len(sequences)], eager)
    after = [tensor.data_ptr() for tensor in (buffers.input_ids, buffers.positions, buffers.metadata.block_tables)]
    assert before == after


def test_padding_has_no_slot_position_or_token(kernels: CudaKernels) -> None:
    buffers = kernels.decode_buffers(3, 64, BLOCK_SIZE)
    update(buffers, random_step([(1, 20), (1, 30), (1, 40)]))
    update(buffers, random_step([(1, 20)]))
    assert buffers.metadata.slot_mapping[1:].tolist() == [-1, -1]
    assert buffers.metadata.seq_lens.tolist() == [20, 0, 0]
    assert buffers.positions.tolist() == [19, 0, 0]
    assert buffers.input_ids.tolist() == [100, 0, 0]


def test_input_ids_are_taken_from_the_samples_that_only_the_device_knows(kernels: CudaKernels) -> None:
    buffers = kernels.decode_buffers(4, 64, BLOCK_SIZE)
    rows = torch.tensor([2, -1, 0], dtype=torch.int32)
    update(buffers, random_step([(1, 20), (1, 30), (1, 40)]), rows)
    buffers.take_sampled(ints(7, 8, 2**33 + 9))
    assert buffers.input_ids.tolist() == [2**33 + 9, 101, 7, 0]


def test_a_step_that_does_not_fit_is_refused(kernels: CudaKernels) -> None:
    buffers = kernels.decode_buffers(2, 600, BLOCK_SIZE, max_splits=4)
    for sequences in ([(1, 1)] * 3, [(1, 601)], [(1, 600), (1, 300)]):
        step = random_step(sequences)
        assert not buffers.fits(step.seq_lens)
        with pytest.raises(ValueError, match="at most 2 sequences of 600 tokens, 4 splits"):
            update(buffers, step)
    assert buffers.fits(random_step([(1, 600), (1, 256)]).seq_lens)


def test_a_window_that_the_buffers_were_not_made_for_is_refused(kernels: CudaKernels) -> None:
    buffers = kernels.decode_buffers(1, 64, BLOCK_SIZE, windows=(32,))
    step = random_step([(1, 20)])
    update(buffers, step)
    with pytest.raises(ValueError, match="without a sliding window of 33"):
        replay(kernels, buffers, step, window=33)


def test_the_host_may_write_the_next_step_while_the_device_still_copies_the_last(kernels: CudaKernels) -> None:
    buffers = kernels.decode_buffers(2, 64, BLOCK_SIZE)
    for tokens in range(1, 8):
        update(buffers, random_step([(1, tokens)]))  # raises LaunchFault where it writes what is being copied


@pytest.mark.parametrize("how", ["waited for too late", "never waited for"])
def test_writing_what_the_device_still_copies_is_caught(how: str) -> None:
    launcher = SimulatedLauncher()
    host, memory, event = launcher.staging(16).zero_(), launcher.empty((16,), torch.uint8), launcher.event()
    launcher.upload(host, memory)
    event.record()
    host[3] = 1
    with pytest.raises(LaunchFault, match="still copying"):
        event.synchronize() if how == "waited for too late" else launcher.upload(host, memory)


def test_partial_results_of_all_buckets_share_one_memory(kernels: CudaKernels) -> None:
    large, small = (kernels.decode_buffers(n, 512, BLOCK_SIZE) for n in (4, 1))
    partials = [b.metadata.decode.splits_of(None).partials_of(4, 64) for b in (large, small) if b.metadata.decode]
    assert partials[0].out.data_ptr() == partials[1].out.data_ptr()
    assert partials[0].out.shape == (8, 4, 64)


@pytest.mark.parametrize(
    ("bounds", "lens", "match"),
    [
        ([0, 2, 1], [4, 4], "does not divide"),
        ([0, 1, 3], [1, 1], "less than the queries"),
        ([0, 1, 2], [4, 4], "divide"),
    ],
)
def test_bounds_and_lengths_that_make_no_batch_are_refused(
    kernels: CudaKernels, bounds: list[int], lens: list[int], match: str
) -> None:
    tables, cu = torch.zeros(2, 1, dtype=torch.int32), torch.tensor(bounds, dtype=torch.int32)
    with pytest.raises(ValueError, match=match):
        kernels.attention_metadata(tables, ints(0, 1, 2), cu, torch.tensor(lens, dtype=torch.int32))
