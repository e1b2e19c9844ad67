"""What the device's memory can do in this run: the denominators of every other figure."""

from dataclasses import dataclass

import torch

from numba_kernels.bench.timing import Timer


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes per second."""

    device_copy: float  # within the device, bytes read plus bytes written
    host_to_device: float  # from pinned memory
    device_to_host: float


def measure_ceilings(device: torch.device, timer: Timer, num_bytes: int = 1 << 30) -> Ceilings:
    """Copies of so many bytes by torch (a quarter of them between host and device)."""
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    part = num_bytes // 4
    host = torch.randint(0, 255, (part,), dtype=torch.uint8, pin_memory=device.type == "cuda")
    within = timer(lambda _: target.copy_(source), 1).median_s
    inwards = timer(lambda _: target[:part].copy_(host, non_blocking=True), 1).median_s
    outwards = timer(lambda _: host.copy_(source[:part], non_blocking=True), 1).median_s
    return Ceilings(2 * num_bytes / within, part / inwards, part / outwards)
