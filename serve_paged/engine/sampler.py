"""Chooses each sequence's next token from the model's logits, for a whole batch at once."""

from dataclasses import dataclass

import torch

from numba_kernels import Kernels
from numba_kernels.kernels import Download
from serve_paged.core.outputs import TokenLogprobs
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import Sequence
from serve_paged.engine.device import empty_logits
from serve_paged.engine.logprobs import LogprobsCopy, NonFiniteLogits
from serve_paged.engine.sampling_batch import SamplingBatch
from serve_paged.engine.token_choice import token_choice


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A sequence's next token, with log probabilities where the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class Samples:
    """The tokens that one step samples: on the device for the next step, and on their way to the host."""

    def __init__(
        self, token_ids: torch.Tensor, seqs: list[Sequence], copy: Download, logprobs: LogprobsCopy | None
    ) -> None:
        self.token_ids = token_ids  # int64 [S] on the device
        self._seqs = seqs
        self._copy = copy  # of the same, but -1 where the logits were not finite
        self._logprobs = logprobs

    @torch.inference_mode()
    def read(self) -> list[SampledToken]:
        """Wait for them. Raises `NonFiniteLogits`, a fault of the engine, naming the requests."""
        token_ids = self._copy.wait().tolist()
        bad = {seq.request_id for seq, token_id in zip(self._seqs, token_ids, strict=True) if token_id < 0}
        if bad:
            names = ", ".join(sorted(bad))
            raise NonFiniteLogits(f"logits are NaN or infinite, or no token is left, for request {names}")
        found = iter(self._logprobs.read() if self._logprobs is not None else ())
        return [
            SampledToken(token_id, next(found) if seq.params.logprobs is not None else None)
            for token_id, seq in zip(token_ids, self._seqs, strict=True)
        ]


class Sampler:
    """Samples in the order of OpenAI's API and vLLM.

    Log probabilities from the untouched logits; logit_bias; min_tokens (end-of-sequence and stop tokens are out of
    reach until then, under ignore_eos too); repetition, frequency and presence penalties; then the largest logit
    (the lowest id among equals) or temperature, top_k, top_p, min_p and a draw. The random number depends on the
    sequence's seed, its choice and the position alone, so a text does not depend on its batch and can be resumed.
    """

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...], kernels: Kernels) -> None:
        self._kernels = kernels
        self._choose = token_choice(kernels)
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._batch: SamplingBatch | None = None

    @torch.inference_mode()
    def launch(self, logits: torch.Tensor, seqs: list[Sequence]) -> Samples:
        """Choose the next token of seqs[i] from logits[i]; logits float32 [S, vocab] are overwritten.

        On a GPU nothing here waits for it, and the logits are in memory of `empty_logits`. Logits that are not finite
        are found when the samples are read.
        """
        assert logits.shape == (len(seqs), self._vocab_size)
        assert logits.dtype == torch.float32
        if not seqs:
            nothing = torch.empty(0, dtype=torch.int64, device=logits.device)
            return Samples(nothing, [], self._kernels.download(nothing), None)
        batch = self._batch_of(seqs, logits.device)
        raw = logits[batch.logprob_rows] if len(batch.logprob_rows) else None  # a copy: `apply` works in place
        batch.apply(logits)
        token_ids, checked = self._choose(logits, batch)
        logprobs = None
        if raw is not None:
            num_top = [seq.params.logprobs or 0 for seq in seqs if seq.params.logprobs is not None]
            logprobs = LogprobsCopy(raw, token_ids[batch.logprob_rows], num_top, self._kernels)
        return Samples(token_ids, list(seqs), self._kernels.download(checked), logprobs)

    def sample(self, logits: torch.Tensor, seqs: list[Sequence]) -> list[SampledToken]:
        """Launch and read."""
        return self.launch(logits, seqs).read()

    def warm_up(self) -> None:
        """Load or compile what sampling needs on the device."""
        nobody = Sequence("warm-up", [0], SamplingParams(), arrival_time=0.0, seed=0, max_num_tokens=2)
        self.sample(empty_logits(1, self._vocab_size, self._kernels.device).zero_(), [nobody])
        self._batch = None

    def _batch_of(self, seqs: list[Sequence], device: torch.device) -> SamplingBatch:
        batch = self._batch
        if batch is None or batch.seqs != seqs:
            batch = SamplingBatch(
                seqs,
                vocab_size=self._vocab_size,
                eos_token_ids=self._eos_token_ids,
                device=device,
                previous=self._batch,
            )
            self._batch = batch
        return batch
