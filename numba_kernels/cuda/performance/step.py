"""A whole decode step: weights and cache at the bandwidth, and what is between the matrix products."""

from dataclasses import dataclass

from numba_kernels.cuda.performance.machine import Machine
from numba_kernels.cuda.performance.predict import KernelModel, predict
from numba_kernels.cuda.performance.workloads import ModelShape, attention, between

_PRODUCTS_PER_LAYER = 4  # qkv, out, gate and up, down
_GOAL = 0.75  # of the byte limit


@dataclass(frozen=True, slots=True)
class StepModel:
    """Of one decode step as a graph. Predicted."""

    weights_s: float  # at the bandwidth
    cache_s: float  # at the bandwidth
    attention_s: float  # predicted, with the merging of splits
    between_s: float  # predicted: what is neither a product nor attention
    products_launch_s: float  # assumed: one gap per product
    num_launches: int

    @property
    def limit_s(self) -> float:
        return self.weights_s + self.cache_s

    def time_s(self, product_fraction: float) -> float:
        """If the products read their weights at this fraction of the bandwidth."""
        return self.weights_s / product_fraction + self.products_launch_s + self.attention_s + self.between_s

    def needed_product_fraction(self, goal: float = _GOAL) -> float:
        """Of the bandwidth, so that the step is at `goal` of its limit; above 1 it cannot be."""
        left = self.limit_s / goal - self.products_launch_s - self.attention_s - self.between_s
        return self.weights_s / left if left > 0 else float("inf")


def step_model(
    shape: ModelShape, batch: int, context: int, models: dict[str, KernelModel], machine: Machine
) -> StepModel:
    """Of a batch whose sequences all have this length."""
    attending = [predict(w, models[w.kernel.name], machine) for w in attention(shape, batch, context, machine)]
    others = [predict(w, models[w.kernel.name], machine) for w in between(shape, batch)]
    num_products = _PRODUCTS_PER_LAYER * shape.num_layers + 1
    return StepModel(
        shape.step_weight_bytes / machine.bandwidth,
        shape.num_layers * batch * context * shape.kv_bytes_per_token / machine.bandwidth,
        sum(p.time_s * p.workload.calls for p in attending),
        sum(p.time_s * p.workload.calls for p in others),
        num_products * machine.launch_s,
        num_products + sum(p.workload.calls for p in attending + others),
    )


def print_step(shape: ModelShape, batch: int, context: int, models: dict[str, KernelModel], machine: Machine) -> None:
    """The step's parts, and what has to hold for the goal."""
    step = step_model(shape, batch, context, models, machine)
    print(f"\nPredicted decode step of {shape.name}, batch {batch}, context {context}: {step.num_launches} launches\n")
    for name, seconds in (
        ("weights at the bandwidth", step.weights_s),
        ("cache at the bandwidth", step.cache_s),
        ("byte limit", step.limit_s),
        ("attention, predicted", step.attention_s),
        ("between the products, predicted", step.between_s),
        ("gaps before the products, assumed", step.products_launch_s),
    ):
        print(f"  {name:34} {seconds * 1e3:6.2f} ms")
    for fraction in (0.7, 0.8, 0.9):
        whole = step.time_s(fraction)
        of_limit = f"{step.limit_s / whole:.0%} of the limit"
        print(f"  products at {fraction:.0%} of the bandwidth: {whole * 1e3:.2f} ms, {of_limit}")
    print(f"  for {_GOAL:.0%} the products have to reach {step.needed_product_fraction():.0%}")
