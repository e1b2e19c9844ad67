import numpy as np
import pytest

from serve_paged.engine.philox import philox4x32, seed_words, uniforms

# Known answers of the authors' library, Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> np.ndarray:
    return np.array([[int(word, 16)] for word in text.split()], dtype=np.uint64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, expected: str) -> None:
    assert philox4x32(words(counter), words(key)).tolist() == words(expected).tolist()


def test_numbers_are_uniform_over_positions_choices_and_seeds() -> None:
    n = 100_000
    varying, fixed = list(range(n)), [7] * n
    for seeds, choices, positions in ((fixed, fixed, varying), (fixed, varying, fixed), (varying, fixed, fixed)):
        numbers = uniforms(seed_words(seeds), choices, positions)
        assert numbers.min() >= 0.0
        assert numbers.max() < 1.0
        counts, _ = np.histogram(numbers, bins=100, range=(0.0, 1.0))
        chi_square = ((counts - n / 100) ** 2 / (n / 100)).sum()
        assert chi_square < 160.1  # 99 degrees of freedom at p = 0.0001; the inputs are fixed
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.013  # four standard errors


def test_a_number_depends_on_its_own_row_alone() -> None:
    alone = [uniforms(seed_words([seed]), [seed + 1], [seed + 2])[0] for seed in range(20)]
    together = uniforms(seed_words(range(20)), list(range(1, 21)), list(range(2, 22)))
    assert together.tolist() == alone


def test_seed_choice_and_position_each_change_the_number() -> None:
    numbers = {
        float(uniforms(seed_words([seed]), [choice], [position])[0])
        for seed, choice, position in [(0, 0, 0), (1, 0, 0), (1 << 32, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(numbers) == 5


def test_any_python_integer_is_a_seed() -> None:
    key = seed_words([-1, 2**64 - 1, 2**64, 0])
    assert key[:, 0].tolist() == key[:, 1].tolist() == [0xFFFFFFFF, 0xFFFFFFFF]
    assert key[:, 2].tolist() == key[:, 3].tolist() == [0, 0]
