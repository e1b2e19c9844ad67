"""The command line: `python -m serve_paged COMMAND`. Each command imports what it needs when it runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serve_paged.config import DEFAULT_MODEL, EngineConfig, prepare_environment

if TYPE_CHECKING:
    from serve_paged.engine.engine import Engine
    from serve_paged.engine.text import TextModel

model_option = click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, help="Name, folder, .gguf or Hugging Face id."
)
DTYPES = click.Choice(["auto", "float32", "bfloat16", "float16"])
dtype_option = click.option("--dtype", type=DTYPES, default="auto", show_default=True)
device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
threads_option = click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads; default: all.")


@click.group()
def main() -> None:
    """An autoscaling LLM endpoint on Ray Serve over its own paged-KV engine."""
    prepare_environment(os.environ)


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path), default="serve_config.yaml")
def serve(config: Path) -> None:
    """Start Ray Serve with CONFIG and stay in the foreground until Ctrl-C."""
    from serve_paged.serve.launch import run

    run(config)


@main.command()
@click.argument("prompt")
@model_option
@dtype_option
@device_option
@threads_option
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=None)
@click.option("-n", "num_choices", type=click.IntRange(min=1), default=1, show_default=True, help="Completions.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the model's chat template.")
def generate(
    prompt: str,
    model: str,
    dtype: str,
    device: str,
    threads: int | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    num_choices: int,
    raw: bool,
) -> None:
    """Answer PROMPT offline: no Ray, no server."""
    from serve_paged.core.errors import InvalidRequest
    from serve_paged.core.outputs import ChoiceDelta
    from serve_paged.core.sampling_params import SamplingParams
    from serve_paged.engine import offline

    try:
        params = SamplingParams(n=num_choices, temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens)
        engine = _build_engine(model=model, dtype=dtype, device=device, threads=threads)
        text_model = engine.text_model
        text = prompt if raw else _chat_prompt(text_model, prompt)
        token_ids = text_model.tokenizer.encode(text, add_special_tokens=raw).ids

        def echo(delta: ChoiceDelta) -> None:
            if num_choices == 1:
                click.echo(delta.text, nl=delta.finish_reason is not None)

        completions = offline.generate(engine, [token_ids], params, on_delta=echo)
    except InvalidRequest as refused:
        raise click.ClickException(refused.message) from refused
    if num_choices > 1:
        for completion in completions:
            click.echo(f"--- {completion.choice}\n{completion.text}")


@main.command()
@model_option
@click.option(
    "--random-weights", metavar="SHAPE", help="Instead of --model: random weights of a shape, as llama-3.2-1b."
)
@click.option("--num-layers", type=click.IntRange(min=1), help="Of the random model, instead of the shape's own.")
@click.option("--dtype", type=DTYPES, default="bfloat16", show_default=True)
@device_option
@threads_option
@click.option("--num-requests", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--input-len", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens per prompt.")
@click.option("--output-len", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens per output.")
@click.option(
    "--lengths", type=click.Choice(["fixed", "sharegpt"]), default="fixed", show_default=True,
    help="sharegpt: a ShareGPT-like mix instead of --input-len and --output-len.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of prompts, lengths and random weights.")
@click.option("--max-model-len", type=click.IntRange(min=1), default=None, help="Tokens; default: the model's own.")
@click.option("--max-num-seqs", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--max-num-batched-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--kv-cache-dtype", type=click.Choice(["auto", "fp8"]), default="auto", show_default=True)
@click.option("--kv-cache-gb", type=float, default=None, help="Default: what is free on a GPU, 1.0 on the CPU.")
@click.option(
    "--vs", multiple=True,
    type=click.Choice(["transformers", "generate-one", "generate-static", "continuous-batching"]),
    help="Then the same trace and weights through transformers; may be repeated. transformers: all three ways.",
)  # fmt: skip
@click.option("--static-batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--vs-limit-s", type=float, default=float("inf"), help="Stop each rival after about so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(as_json: bool, **options: Any) -> None:
    """Measure the engine offline: throughput, TTFT and ITL, preemptions, use of the KV cache; and compare it."""
    from serve_paged.bench.command import BenchOptions, run
    from serve_paged.bench.report import table

    try:
        comparison = run(BenchOptions(**options), show_progress=sys.stderr.isatty())
    except ValueError as refused:
        raise click.ClickException(str(refused)) from refused
    click.echo(json.dumps(comparison.as_dict(), indent=2) if as_json else table(comparison))


def _build_engine(**settings: object) -> Engine:
    from serve_paged.engine.build import build_engine

    try:
        return build_engine(EngineConfig(**settings))  # type: ignore[arg-type]
    except ValueError as refused:
        raise click.ClickException(str(refused)) from refused


def _chat_prompt(text_model: TextModel, message: str) -> str:
    from serve_paged.serve.chat_template import render_chat

    template = text_model.chat_template
    messages = [{"role": "user", "content": message}]
    if template is None:
        return render_chat(None, {}, messages)
    return render_chat(template.source, template.special_tokens, messages)


if __name__ == "__main__":
    main()
