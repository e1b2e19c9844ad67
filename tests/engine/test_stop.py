import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import FinishReason, Sequence
from serve_paged.engine.detokenizer import Detokenizer
from serve_paged.engine.stop import StopChecker
from serve_paged.engine.stop_strings import StopStrings
from tests.engine.tiny_tokenizers import pieces

PIECES = ["a", "b", "c", "ab", "ba", "abc", "aab", "cab", "bb"]
TOKENIZER = pieces(PIECES)
EOS = len(PIECES)


def first_stop(text: str, stops: tuple[str, ...], start: int = 0) -> tuple[int, str] | None:
    """End of the match that ends first behind `start`, and the longest stop string that ends there."""
    for end in range(start + 1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return end, max(matches, key=len)
    return None


def may_begin_a_stop(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins a stop string, itself excluded."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


stop_sets = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4).map(tuple)
outputs = st.lists(st.integers(0, len(PIECES) - 1), max_size=14)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(stop_sets, outputs, st.integers(0, 4), st.booleans())
def test_text_is_cut_at_the_first_stop_string_and_never_leaks(
    stops: tuple[str, ...], output: list[int], min_tokens: int, include: bool
) -> None:
    params = SamplingParams(stop=stops, min_tokens=min_tokens, include_stop_str_in_output=include)
    detokenizer = Detokenizer(TOKENIZER, params, [])
    texts = [PIECES[token_id] for token_id in output]
    found = first_stop("".join(texts), stops, start=len("".join(texts[:min_tokens])))
    sent, decoded = "", ""
    for text, token_id in zip(texts, output, strict=True):
        sent += detokenizer.append(token_id)
        decoded += text
        stopped = found is not None and len(decoded) >= found[0]
        assert detokenizer.stopped_by == (found[1] if found and stopped else None)
        if not stopped:
            assert sent == decoded[: len(decoded) - (0 if include else may_begin_a_stop(decoded, stops))]
    sent += detokenizer.finish()
    if found is None:
        assert sent == decoded
    else:
        assert sent == decoded[: found[0] - (0 if include else len(found[1]))]
    assert detokenizer.num_safe_chars == len(sent)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(stop_sets, st.text("abc", max_size=30))
def test_the_automaton_finds_what_a_plain_search_finds(stops: tuple[str, ...], text: str) -> None:
    automaton, state = StopStrings(stops), 0
    for end, char in enumerate(text, start=1):
        state = automaton.step(state, char)
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        assert automaton.found(state) == max(matches, key=len, default="")
        assert automaton.num_held(state) == may_begin_a_stop(text[:end], stops)


def test_the_cut_does_not_depend_on_how_the_text_falls_into_tokens() -> None:
    params = SamplingParams(stop=("bca", "c"))
    for split in (["a", "b", "c", "a"], ["ab", "c", "a"], ["abc", "a"]):
        detokenizer = Detokenizer(TOKENIZER, params, [])
        assert "".join(detokenizer.append(PIECES.index(text)) for text in split) == "ab"
        assert detokenizer.stopped_by == "c"


def test_a_stop_string_is_not_looked_for_in_the_prompt() -> None:
    detokenizer = Detokenizer(TOKENIZER, SamplingParams(stop=("ab",)), [0])
    assert detokenizer.append(1) == "b"
    assert detokenizer.stopped_by is None


class Run:
    """One choice of the test tokenizer, fed token by token as the engine does it."""

    def __init__(self, params: SamplingParams, max_num_tokens: int = 100) -> None:
        self.seq = Sequence("request", [0], params, arrival_time=0.0, seed=0, max_num_tokens=max_num_tokens)
        self.detokenizer = Detokenizer(TOKENIZER, params, [0], (), (EOS,))
        self.checker = StopChecker(params, (EOS,))
        self.text = ""

    def add(self, *token_ids: int) -> tuple[FinishReason | None, int | str | None]:
        """Add tokens until one of them ends the sequence."""
        end: tuple[FinishReason | None, int | str | None] = (None, None)
        for token_id in token_ids:
            assert end[0] is None
            self.seq.output_token_ids.append(token_id)
            self.text += self.detokenizer.append(token_id)
            end = self.checker.check(self.seq, token_id, self.detokenizer)
        self.text += self.detokenizer.finish() if end[0] else ""
        return end


def test_the_end_token_stops_without_a_stop_reason_or_text() -> None:
    run = Run(SamplingParams(skip_special_tokens=False))
    assert run.add(3, EOS) == (FinishReason.STOP, None)
    assert run.text == "ab"


def test_ignore_eos_goes_on() -> None:
    run = Run(SamplingParams(ignore_eos=True, skip_special_tokens=False))
    assert run.add(0, EOS, 1) == (None, None)
    assert run.text == "a<eos>b"


def test_ignore_eos_still_obeys_an_end_token_among_the_stop_tokens() -> None:
    run = Run(SamplingParams(ignore_eos=True, stop_token_ids=(EOS,)))
    assert run.add(0, EOS) == (FinishReason.STOP, EOS)


@pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "aabc")])
def test_a_stop_token_is_the_reason_and_text_only_if_included(include: bool, text: str) -> None:
    run = Run(SamplingParams(stop_token_ids=(5,), include_stop_str_in_output=include))
    assert run.add(0, 5) == (FinishReason.STOP, 5)
    assert run.text == text


def test_a_stop_string_is_the_reason() -> None:
    run = Run(SamplingParams(stop=("bc",)))
    assert run.add(0, 1, 2) == (FinishReason.STOP, "bc")
    assert run.text == "a"


def test_text_held_back_is_sent_when_a_stop_token_ends_the_choice() -> None:
    run = Run(SamplingParams(stop=("bca",)))
    run.add(0, 1, 2)
    assert run.text == "a"
    run.add(EOS)
    assert run.text == "abc"


def test_the_length_is_a_reason_of_its_own() -> None:
    run = Run(SamplingParams(), max_num_tokens=3)
    assert run.add(0) == (None, None)
    assert run.add(1) == (FinishReason.LENGTH, None)


@pytest.mark.parametrize(("last", "reason"), [(EOS, None), (5, 5), (2, "bc")])
def test_a_stop_at_the_last_token_counts_as_a_stop(last: int, reason: int | str | None) -> None:
    run = Run(SamplingParams(stop=("bc",), stop_token_ids=(5,)), max_num_tokens=3)
    assert run.add(1, last) == (FinishReason.STOP, reason)


def test_nothing_stops_before_min_tokens() -> None:
    run = Run(SamplingParams(min_tokens=3, stop=("bc",), stop_token_ids=(5,)))
    assert run.add(1, 2, 5) == (None, None)  # a string, then a token that would stop
    assert run.text == "bcabc"
    assert run.add(5) == (FinishReason.STOP, 5)


def test_a_stop_string_may_begin_before_min_tokens_and_end_after() -> None:
    run = Run(SamplingParams(min_tokens=2, stop=("abc",)))
    assert run.add(0, 1) == (None, None)
    assert run.text == ""
    assert run.add(2) == (FinishReason.STOP, "abc")
