"""The host's half of decode attention: sequences cut into splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_kernels.cuda.decode_plan import NO_WINDOW, NOT_PARTIAL, decode_plan, max_work, write_decode_plan


def lengths(*seq_lens: int) -> np.ndarray:
    return np.array(seq_lens, np.int32)


def test_splits_cover_what_a_query_sees_once_and_in_order() -> None:
    plan = decode_plan(lengths(0, 1, 256, 300, 1000), window=600, split_tokens=256)
    assert plan.work_begin.tolist() == [0, 0, 1, 2, 4, 7]
    assert plan.work.tolist() == [
        [1, 0, 1, -1], [2, 0, 256, -1], [3, 0, 256, 2], [3, 256, 300, 3], [4, 400, 512, 4], [4, 512, 768, 5],
        [4, 768, 1000, 6],
    ]  # fmt: skip


@given(
    seq_lens=st.lists(st.integers(0, 2000), min_size=1, max_size=6),
    window=st.sampled_from([1, 16, 255, 257, NO_WINDOW]),
    split_tokens=st.sampled_from([16, 256]),
)
def test_a_sequence_is_cut_at_the_same_places_in_any_batch(seq_lens: list[int], window: int, split_tokens: int) -> None:
    plan = decode_plan(lengths(*seq_lens), window, split_tokens)
    for seq, seq_len in enumerate(seq_lens):
        begin, end = plan.work_begin[seq : seq + 2]
        rows = plan.work[begin:end]
        seen = [token for _, first, last, _ in rows.tolist() for token in range(first, last)]
        assert seen == list(range(max(0, seq_len - window), seq_len))
        assert (rows[1:, 1] % split_tokens == 0).all()
        assert (rows[:, 0] == seq).all()
        assert rows[:, 3].tolist() == ([NOT_PARTIAL] if len(rows) == 1 else list(range(begin, end)))


def test_a_plan_in_fixed_buffers_is_the_same_and_leaves_the_rest() -> None:
    seq_lens = lengths(700, 3, 0, 0)
    work, work_begin = np.full((max_work(4, 700), 4), 7, np.int32), np.full(5, 7, np.int32)
    num_work = write_decode_plan(seq_lens, work, work_begin)
    plan = decode_plan(seq_lens)
    assert num_work == plan.num_work == work_begin[-1] == 4
    np.testing.assert_array_equal(work[:num_work], plan.work)
    np.testing.assert_array_equal(work_begin, plan.work_begin)
    assert (work[num_work:] == 7).all()


def test_a_plan_that_does_not_fit_writes_nothing_outside_its_buffers() -> None:
    memory = np.full((4, 4), 7, np.int32)
    with pytest.raises(ValueError, match="3 splits do not fit into 2"):
        write_decode_plan(lengths(700), memory[:2], np.empty(2, np.int32))
    assert (memory[2:] == 7).all()
    with pytest.raises(ValueError, match="work_begin of shape"):
        write_decode_plan(lengths(700), memory, np.empty(1, np.int32))


def test_a_plan_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        decode_plan(lengths(4), split_tokens=24)
    with pytest.raises(ValueError, match="cannot cut"):
        decode_plan(lengths(4), split_tokens=0)
    with pytest.raises(ValueError, match="cannot cut"):
        decode_plan(lengths(4), window=0)
    with pytest.raises(ValueError, match="negative length"):
        decode_plan(lengths(4, -1))
