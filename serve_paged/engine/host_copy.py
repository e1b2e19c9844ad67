"""Device tensors on their way to the host, while the host goes on."""

import torch
from torch import Tensor


class HostCopy:
    """Copies of tensors of one device: launched when made, waited for when wanted. On the CPU, the tensors themselves.

    The copies go to pinned memory and an event follows them on the current stream: waiting for it waits for nothing
    that was launched later.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._copied: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._tensors = tuple(
                torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            )
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, on the CPU."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors
