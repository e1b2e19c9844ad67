"""The launcher of a real GPU, over a driver in Python that notes what it is called with."""

import struct
from collections.abc import Callable

import pytest
import torch

from numba_kernels.cuda.driver import Copy, CudaError, Driver
from numba_kernels.cuda.gpu_launcher import GpuLauncher
from numba_kernels.cuda.launcher import DeviceProperties
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from numba_kernels.cuda.swap import runs
from numba_kernels.cuda.target import Index3, Kernel
from tests.kernels_cuda.fake_driver import FakeDriver

TYPES = ("int64",) * 9 + ("int32", "uint32", "float32", "int32")
ARGS = (*(0x7F00_0000_0000 + i for i in range(9)), -5, 2**32 - 1, 0.1, 7)


def kernel(dynamic_shared_bytes: int = 0, name: str = "a-kernel") -> Kernel:
    return Kernel(lambda target: lambda: None, TYPES, 128, name=name, dynamic_shared_bytes=dynamic_shared_bytes)


class Ptx:
    def image(self, kernel: Kernel, compute_capability: tuple[int, int]) -> bytes:
        return b"ptx of %s for %d%d\0" % (kernel.name.encode(), *compute_capability)


def launcher(
    driver: FakeDriver,
    *,
    current_stream: Callable[[], int] = lambda: 0x57,
    is_capturing: Callable[[], bool] = lambda: False,
) -> GpuLauncher:
    driver.num_arguments = len(TYPES)
    properties = DeviceProperties(132, (9, 0))
    return GpuLauncher(
        torch.device("cuda:0"),
        properties,
        Driver(driver),
        Ptx(),
        current_stream=current_stream,
        is_capturing=is_capturing,
    )


def test_every_argument_arrives_in_its_own_type() -> None:
    driver = FakeDriver()
    launcher(driver).launch(kernel(), Index3(3, 2), 96, ARGS, ())
    (launch,) = driver.launches
    assert (launch.function, launch.grid, launch.threads) == (0xF0, (3, 2, 1), (96, 1, 1))
    formats = ["<q"] * 9 + ["<i", "<I", "<f", "<i"]
    values = [struct.unpack_from(f, slot)[0] for f, slot in zip(formats, launch.slots, strict=True)]
    assert values == [*ARGS[:11], struct.unpack("<f", struct.pack("<f", 0.1))[0], 7]


def test_a_later_launch_has_its_own_arguments() -> None:
    driver = FakeDriver()
    gpu, one = launcher(driver), kernel()
    gpu.launch(one, Index3(1), 32, ARGS, ())
    gpu.launch(one, Index3(1), 32, (1, *ARGS[1:]), ())
    assert [struct.unpack("<q", launch.slots[0])[0] for launch in driver.launches] == [ARGS[0], 1]


def test_each_launch_goes_to_the_stream_that_is_current_then() -> None:
    driver, streams = FakeDriver(), iter([5, 6])
    gpu, one = launcher(driver, current_stream=lambda: next(streams)), kernel()
    for _ in range(2):
        gpu.launch(one, Index3(1), 32, ARGS, ())
    assert [launch.stream for launch in driver.launches] == [5, 6]


def test_a_kernel_is_loaded_once() -> None:
    driver = FakeDriver()
    gpu, one = launcher(driver), kernel()
    gpu.prepare([one])
    gpu.prepare([one])
    gpu.launch(one, Index3(1), 32, ARGS, ())
    assert driver.loaded == [b"ptx of a-kernel for 90"]


def test_a_prepared_kernel_has_nothing_left_to_load_at_its_first_launch() -> None:
    driver = FakeDriver()
    launcher(driver).prepare([kernel()])
    assert driver.finished == [0xF0]


def test_much_shared_memory_is_asked_for_and_little_is_not() -> None:
    driver = FakeDriver()
    gpu, much = launcher(driver), kernel(100_000)
    gpu.prepare([kernel(48 * 1024, "little"), much])
    assert driver.attributes == [(0xF0, 8, 100_000)]
    gpu.launch(much, Index3(1), 32, ARGS, ())
    assert driver.launches[0].shared_bytes == 100_000


def test_an_empty_grid_launches_nothing() -> None:
    driver = FakeDriver()
    launcher(driver).launch(kernel(), Index3(4, 0), 32, ARGS, ())
    assert driver.launches == []


def test_a_first_launch_inside_a_capture_is_refused_and_a_prepared_one_is_not() -> None:
    driver, capturing = FakeDriver(), [False]
    gpu, prepared = launcher(driver, is_capturing=lambda: capturing[0]), kernel()
    gpu.prepare([prepared])
    capturing[0] = True
    gpu.launch(prepared, Index3(1), 32, ARGS, ())
    with pytest.raises(RuntimeError, match=r"other.*prepare"):
        gpu.launch(kernel(name="other"), Index3(1), 32, ARGS, ())


@pytest.mark.parametrize("args", [ARGS[:-1], (*ARGS, 1), (*ARGS[:-1], 0.5), (*ARGS[:-1], 2**31)])
def test_arguments_of_another_number_or_type_are_refused(args: tuple[int | float, ...]) -> None:
    driver = FakeDriver()
    with pytest.raises(TypeError, match="a-kernel takes"):
        launcher(driver).launch(kernel(), Index3(1), 32, args, ())
    assert driver.launches == []


def test_a_refused_launch_says_what_and_why() -> None:
    gpu = launcher(FakeDriver(codes={"cuLaunchKernel": [701]}))
    with pytest.raises(CudaError, match=r"launching a-kernel over \(9, 1, 1\) blocks of 32 .*CUDA_ERROR_701.*wrong"):
        gpu.launch(kernel(), Index3(9), 32, ARGS, ())


def test_a_thread_that_has_not_used_the_gpu_is_given_the_context() -> None:
    driver = FakeDriver(codes={"cuLaunchKernel": [201]})
    gpu, one = launcher(driver), kernel()
    gpu.prepare([one])
    driver.contexts.clear()
    gpu.launch(one, Index3(1), 32, ARGS, ())
    assert (driver.contexts, len(driver.launches)) == ([0xC0], 1)


def test_ptx_that_the_driver_cannot_read_names_the_remedy() -> None:
    gpu = launcher(FakeDriver(version=12040, codes={"cuModuleLoadDataEx": [222]}))
    with pytest.raises(CudaError, match=r"(?s)driver knows CUDA 12\.4 .*prebuild.*line 3: unknown opcode"):
        gpu.prepare([kernel()])


def test_a_thread_without_a_context_is_refused() -> None:
    driver = FakeDriver()
    driver._export("cuCtxGetCurrent", driver._give(0), *driver.cuCtxGetCurrent.argtypes)
    with pytest.raises(CudaError, match="no CUDA context"):
        launcher(driver)


def test_rows_that_are_neighbours_on_both_sides_go_together() -> None:
    assert runs([(4, 0), (5, 1), (6, 2), (7, 4), (8, 5), (1, 6)]) == [(4, 0, 3), (7, 4, 2), (1, 6, 1)]


def test_copies_go_one_by_one_on_their_stream() -> None:
    fake = FakeDriver()
    Driver(fake).copy([Copy(0x1000, 0x9000, 64), Copy(0x2000, 0xA000, 128)], stream=7)
    assert fake.copies == [(0x9000, 0x1000, 64, 7), (0xA000, 0x2000, 128, 7)]


def test_host_memory_that_is_not_pinned_is_refused() -> None:
    driver = FakeDriver()
    with pytest.raises(ValueError, match="source is in memory of the host that is not pinned"):
        launcher(driver).copy_rows(torch.zeros(2, 8), torch.zeros(2, 8), [(0, 1)])


def test_what_a_launch_costs_is_measured_with_the_same_launches_either_way() -> None:
    from tests.gpu.launch_cost import KERNEL, bare_burst, launcher_burst, nothing_to_write

    fake, memory = FakeDriver(), torch.full((1024,), -1)
    gpu, args = launcher(fake), nothing_to_write(memory)
    fake.num_arguments = len(KERNEL.argument_types)
    launcher_burst(gpu, args)(3)
    bare_burst(gpu, args)(4)
    first, *others = fake.launches
    assert others == [first] * 7  # the bare loop's first fills its record
    formats = {"int64": "<q", "int32": "<i", "float32": "<f"}
    types = zip(KERNEL.argument_types, first.slots, strict=True)
    assert tuple(struct.unpack_from(formats[name], slot)[0] for name, slot in types) == args


def test_the_launch_that_is_measured_writes_nothing() -> None:
    from tests.gpu.launch_cost import KERNEL, nothing_to_write

    memory = torch.full((1024,), -1)
    SimulatedLauncher().launch(KERNEL, Index3(1), KERNEL.num_threads, nothing_to_write(memory), (memory,))
    assert (memory == -1).all()
