"""Steps between their launch and the moment when the host knows what they sampled."""

from dataclasses import dataclass

from serve_paged.core.preemption import PreemptionCosts
from serve_paged.core.schedule_output import SchedulerOutput, TokenSlot
from serve_paged.core.sequence import Sequence
from serve_paged.engine.logprobs import LogprobsCopy
from serve_paged.engine.model_runner import StepLogits
from serve_paged.engine.sampler import Samples
from serve_paged.engine.stopwatch import Stopwatch

MIN_PREFILL_TOKENS = 64  # a smaller step is bound by reading the weights and says little about what a token costs


@dataclass(frozen=True, slots=True)
class ForwardTime:
    """What a forward pass takes; on a GPU known when it has run."""

    num_tokens: int
    stopwatch: Stopwatch

    def record(self, costs: PreemptionCosts) -> None:
        """Tell those who choose between swapping and computing again. The step has run."""
        if self.num_tokens >= MIN_PREFILL_TOKENS:
            costs.record_compute(self.num_tokens, self.stopwatch.seconds())


@dataclass(frozen=True, slots=True)
class Launched:
    """A step whose forward pass is on its way; nothing is sampled yet."""

    output: SchedulerOutput
    logits: StepLogits
    time: ForwardTime


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log probabilities of a sequence's prompt tokens [start + 1, ...), on their way to the host."""

    seq: Sequence
    start: int
    copy: LogprobsCopy


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step whose tokens are sampled, or will be, and are not read yet."""

    slots: list[TokenSlot]
    samples: Samples  # one for each slot
    prompt_logprobs: list[PromptLogprobs]
    time: ForwardTime
