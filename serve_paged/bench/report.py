"""A comparison as text."""

from serve_paged.bench.comparison import Comparison
from serve_paged.bench.ours import BenchResult


def table(comparison: Comparison) -> str:
    """The engine's figures, then a line for each rival."""
    lines = _figures(comparison.ours.result)
    for rival in comparison.rivals:
        rate, ratio = rival.output_tokens_per_s, comparison.ratio(rival)
        name = " ".join([rival.name, *(f"{key}={value}" for key, value in rival.settings.items())])
        if rate is not None and ratio is not None:
            identical = f"{comparison.num_identical(rival)} of {len(rival.outputs)} answers identical"
            lines.append(f"vs transformers {name}: {rate:.1f} tok/s, we are {ratio:.2f} times as fast; {identical}")
        if rival.error is not None:
            lines.append(f"vs transformers {name}: {rival.error}")
    return "\n".join(lines)


def _figures(result: BenchResult) -> list[str]:
    ttft, itl = result.ttft_ms, result.itl_ms
    return [
        f"requests              {result.num_requests}",
        f"prompt / output       {result.num_prompt_tokens} / {result.num_output_tokens} tokens",
        f"elapsed               {result.elapsed_s:.2f} s",
        f"output throughput     {result.output_tokens_per_s:.1f} tok/s",
        f"total throughput      {result.total_tokens_per_s:.1f} tok/s",
        f"TTFT p50 / p90 / p99  {ttft.p50:.1f} / {ttft.p90:.1f} / {ttft.p99:.1f} ms",
        f"ITL  p50 / p90 / p99  {itl.p50:.1f} / {itl.p90:.1f} / {itl.p99:.1f} ms",
        f"steps                 {result.num_steps}",
        f"preemptions           {result.num_preemptions}",
        f"KV slots in use       {result.kv_slot_share:.1%} of allocated",
        f"load average          {result.load_average:.2f}",
    ]
