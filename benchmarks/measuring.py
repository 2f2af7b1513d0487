"""What the benchmarks share: timing in turns, peak memory, made-up images, tables and JSON."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import multiprocessing
import random
import signal
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, NamedTuple
from unittest import mock
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alrp.memory import peak_memory

MIB = 2**20


def whole_number(least: int) -> Callable[[str], int]:
    """Type of an option: "20" or "2e1", not below ``least``."""

    def parse(text: str) -> int:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (value.is_integer() and value >= least):
            raise argparse.ArgumentTypeError(
                f"expected a whole number of at least {least}, but got {text!r}"
            )
        return int(value)

    return parse


def device_name(text: str) -> str:
    """Type of an option: "cpu", or "cuda" and "cuda:N" if this machine has that GPU."""
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None or device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu or cuda, but got {text!r}")
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise argparse.ArgumentTypeError(
            f"{text} is not on this machine, where PyTorch finds {num_gpus} GPUs; use cpu"
        )
    return text


def output_file(text: str) -> str:
    """Type of an option: a file that can be written, known before hours of measuring."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"expected a file in a folder that exists, but got {text!r}; make {path.parent} first"
        )
    return text


def medians_in_turns(
    functions: dict[str, Callable], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of a call; the functions take turns, so that all see the same disturbances.

    Every round has an order of its own, so that none always finds the caches and the free memory
    that its neighbour leaves. ``warm_up`` calls of each, not timed, come first. On a GPU its own
    clock counts, from before a call until the work of the call is done.
    """
    for function in functions.values():
        for _ in range(warm_up):
            function()
    seconds = {name: [] for name in functions}
    shuffler = random.Random(0)
    for _ in range(repeats):
        for name, function in shuffler.sample(list(functions.items()), len(functions)):
            seconds[name].append(_seconds_of(function, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds_of(function: Callable, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3


class GPUWork(NamedTuple):
    """What one call does on a GPU, by PyTorch's profiler; all None on a CPU.

    Attributes:
        launches: number of kernels.
        milliseconds: time in which these, and copies, run. The rest of a call's time the GPU waits
            for launches; in a training step it often has other work by then.
    """

    launches: int | None = None
    milliseconds: float | None = None


def gpu_work(function: Callable, device: torch.device) -> GPUWork:
    """The work of one call."""
    if device.type != "cuda":
        return GPUWork()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
        _synchronize(device)
    events = profiler.key_averages()
    # cudaLaunchKernel and its variants; cuLaunchKernelEx is that of Triton.
    launches = sum(event.count for event in events if "LaunchKernel" in event.key)
    running = [event for event in events if event.device_type == DeviceType.CUDA]
    return GPUWork(launches, sum(event.self_device_time_total for event in running) / 1e3)


def bytes_moved(function: Callable, device: torch.device) -> int | None:
    """Bytes of all tensors that the kernels of one call read and write; None on a CPU.

    Counted, not measured: each operator of PyTorch, and each kernel of Triton, moves every tensor
    that it takes or gives once and whole. TorchScript runs operator by operator meanwhile, so that
    its count is that of a function whose operators are not fused.
    """
    if device.type != "cuda":
        return None
    with torch.jit.optimized_execution(False), _MovedBytes() as counter, counter.of_triton():
        function()
    return counter.total


class _MovedBytes(TorchDispatchMode):
    """Adds up the bytes of the tensors that operators and kernels of Triton take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if not _only_makes_room(func):
            self._add(args, kwargs, results)
        return results

    @contextlib.contextmanager
    def of_triton(self) -> Iterator[None]:
        """Count kernels of Triton too, also those of its interpreter; without Triton do nothing."""
        try:
            from triton.runtime.interpreter import InterpretedFunction
            from triton.runtime.jit import JITFunction

            from alrp.losses.backends import launching
        except ImportError:
            yield
            return

        def counted(run: Callable) -> Callable:
            def launch(kernel, *args, **kwargs):
                self._add(args)
                return run(kernel, *args, **kwargs)

            return launch

        with contextlib.ExitStack() as stack:
            # Known kernels are launched past Triton's run().
            stack.enter_context(mock.patch.object(launching, "CAN_LAUNCH_COMPILED", False))
            for kind in (JITFunction, InterpretedFunction):
                stack.enter_context(mock.patch.object(kind, "run", counted(kind.run)))
            yield

    def _add(self, *values) -> None:
        tensors = [x for x in tree_leaves(values) if isinstance(x, Tensor)]
        self.total += sum(x.numel() * x.element_size() for x in tensors)


def _only_makes_room(func: torch._ops.OpOverload) -> bool:
    """Views, and memory that nothing is written to."""
    aliases = [result.alias_info for result in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return is_view or func.overloadpacket.__name__.startswith(("empty", "new_empty"))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(function: Callable, device: torch.device) -> int:
    """Most memory that one call holds at a time beyond what was held before.

    Counted by PyTorch's allocators, which see every tensor, temporary ones of operators included.
    """
    function()  # what stays allocated from the first call on is not counted
    if device.type == "cuda":
        _synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with warnings.catch_warnings():
        # Each profile stands for itself.
        warnings.filterwarnings("ignore", message="Warning: Profiler clears events")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def peak_of_process(function: Callable, *args, device: torch.device) -> int:
    """Peak memory, in bytes, of a new process that does nothing but ``function(*args)``.

    On a GPU that of PyTorch's allocator, on a CPU resident memory beyond the imported libraries.
    To be called while this process is small, as a new one starts with the peak of its parent.
    """
    return in_new_process(_peak_here, function, args, device, torch.get_num_threads())


def in_new_process(function: Callable, *args):
    """What ``function(*args)`` returns in a process that it has for itself."""
    context = multiprocessing.get_context("spawn")
    # Ctrl-C ends it without a traceback.
    signals = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(1, mp_context=context, **signals) as pool:
        return pool.submit(function, *args).result()


def _peak_here(function: Callable, args: tuple, device: torch.device, threads: int) -> int:
    torch.set_num_threads(threads)
    before = peak_memory(device)
    function(*args)
    return peak_memory(device) - before


def random_boxes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, 4) XYXY inside a square of ``size``; log-uniform sides from 1/32 to 1/2 of it."""
    exponents = torch.rand(count, 2, generator=generator) * math.log(16)
    sides = exponents.exp() * size / 32
    corners = torch.rand(count, 2, generator=generator) * (size - sides)
    return torch.cat([corners, corners + sides], dim=1)


def random_batch(num_images: int, size: int, num_classes: int) -> list[dict]:
    """Square images of noise, as a data loader gives them, with 1 to 14 boxes each."""
    from detectron2.structures import Boxes, Instances  # what needs only losses does without

    generator = torch.Generator().manual_seed(num_images)
    batch = []
    for _ in range(num_images):
        num_boxes = int(torch.randint(1, 15, (), generator=generator))
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(random_boxes(num_boxes, size, generator))
        instances.gt_classes = torch.randint(num_classes, (num_boxes,), generator=generator)
        image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
    return batch


def environment(device: torch.device) -> dict:
    """Where the figures are from."""
    facts = {"device": "CPU", "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device.type == "cuda":
        return {**facts, "device": torch.cuda.get_device_name(device)}
    try:
        numba_version = importlib.metadata.version("numba")
    except importlib.metadata.PackageNotFoundError:
        numba_version = "none"  # the losses do without, and are slower
    return {**facts, "numba": numba_version}


def markdown(header: list[str], rows: list[list]) -> str:
    """A table, numbers to three digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value) -> str:
    if not isinstance(value, float):
        return str(value)
    # Three significant digits, but no exponent.
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def write_json(path: str | None, document: dict) -> None:
    """Write ``document`` if a path was given."""
    if path:
        Path(path).write_text(json.dumps(document, indent=2) + "\n")
