"""Steps between their launch and the moment when the host knows what they sampled."""

from dataclasses import dataclass

from serve_paged.core.schedule_output import SchedulerOutput, TokenSlot
from serve_paged.core.sequence import Sequence
from serve_paged.engine.logprobs import LogprobsCopy
from serve_paged.engine.model_runner import StepLogits
from serve_paged.engine.sampler import Samples
from serve_paged.engine.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class Launched:
    """A step whose forward pass is on its way; nothing is sampled yet."""

    output: SchedulerOutput
    logits: StepLogits
    stopwatch: Stopwatch  # over the forward pass


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
    num_tokens: int  # that went through the model
    stopwatch: Stopwatch
