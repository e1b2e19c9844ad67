"""`python -m numba_kernels.bench`: correctness, then timings of every operation on this machine."""

import json
import os
import sys
from pathlib import Path

import click
import torch

GIB = 1 << 30


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rounds", default=20, show_default=True, help="CPU: how often each contender is timed.")
@click.option(
    "--layers", default=31, show_default=True, help="CPU: layers of the cache; a prime, so that all get used."
)
@click.option("--threads", default=os.cpu_count(), show_default=True, help="CPU: of torch and of the kernels.")
@click.option(
    "--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True,
    help="float16: CUDA only; float32: CPU only.",
)  # fmt: skip
@click.option("--shape", default="9,3,64", show_default=True, help="CPU: num_heads,num_kv_heads,head_dim")
@click.option("--quick", is_flag=True, help="CUDA: fewer shapes, about 3 minutes.")
@click.option("--budget-s", type=float, default=None, help="CUDA: stop after this. Default: 150 if quick, else 1500.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), default=None, help="CUDA: write all figures here."
)
def main(
    device: str,
    rounds: int,
    layers: int,
    threads: int,
    dtype: str,
    shape: str,
    quick: bool,
    budget_s: float | None,
    json_file: Path | None,
) -> None:
    """Check and time the kernels. The CPU's run beside torch; a GPU's beside torch, Triton and FlashInfer."""
    if device == "cpu":
        from numba_kernels.bench import cpu

        cpu.run(rounds, layers, threads, dtype, shape)
        return
    if budget_s is None:
        budget_s = 150.0 if quick else 1500.0
    _run_cuda(getattr(torch, dtype), quick, budget_s, json_file)


def _run_cuda(dtype: torch.dtype, quick: bool, budget_s: float, json_file: Path | None) -> None:
    from numba_kernels.bench.cuda import Bench
    from numba_kernels.bench.environment import environment
    from numba_kernels.bench.figures import line
    from numba_kernels.bench.shapes import FULL, QUICK
    from numba_kernels.bench.timing import CudaTimer
    from numba_kernels.cuda.kernels import CudaKernels
    from numba_kernels.device import kernels_for

    torch.set_grad_enabled(False)
    try:
        kernels = kernels_for("cuda")
    except RuntimeError as missing:
        raise click.ClickException(str(missing)) from missing
    assert isinstance(kernels, CudaKernels)
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    bench = Bench(kernels, CudaTimer(0.05 if quick else 0.1), dtype, min_bytes=4 * l2_bytes)
    click.echo(f"{torch.cuda.get_device_name(0)}, {dtype}, buffers of {4 * l2_bytes / 1e6:.0f} MB in turn")
    findings = bench.run(QUICK if quick else FULL, budget_s, lambda figure: click.echo(line(figure)))
    ceilings = findings.ceilings
    click.echo(
        f"copies in this run: {ceilings.device_copy / 1e9:.0f} GB/s on the device, host to device "
        f"{ceilings.host_to_device / 1e9:.1f}, device to host {ceilings.device_to_host / 1e9:.1f}"
    )
    if findings.not_run:
        click.echo(f"no time for {len(findings.not_run)}: {', '.join(findings.not_run[:4])}, ...")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(environment() | findings.as_dict(), indent=1) + "\n")
    if not findings.all_right:
        sys.exit("some results are wrong")


if __name__ == "__main__":
    main()
