"""Clocks, memory and the machine."""

import ctypes
import ctypes.util
import os
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Device, threads, dtype, torch version and the rate of matrix products."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else platform.processor()
    return {
        "device": name,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "matmul_gflops": round(matmul_rate(device, dtype) / 1e9, 1),
    }


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product; the best of several."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    best = min(seconds_of(lambda: a @ b, device) for _ in range(8))
    return 2 * size**3 / best


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    started = clock(device)
    work()
    return clock(device) - started


def clock(device: torch.device) -> float:
    """Seconds. Waits for a GPU, whose kernels run after the calls that launch them have returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_random_order(ways: dict[Any, Callable[[], Any]], repeats: int, seed: int = 0) -> dict[Any, list[Any]]:
    """Call each way `repeats` times, in random order within a round, so that drift affects all equally."""
    draw = random.Random(seed)
    results: dict[Any, list[Any]] = {name: [] for name in ways}
    for _ in range(repeats):
        names = list(ways)
        draw.shuffle(names)
        for name in names:
            results[name].append(ways[name]())
    return results


def median(values: list[float]) -> float:
    return statistics.median(values)


def seconds_and_memory(work: Callable[[], Any], device: torch.device) -> tuple[float, int]:
    """Seconds of `work`, and its peak memory above the memory before [bytes] (GPU: allocated; CPU: resident)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        seconds = seconds_of(work, device)
        return seconds, torch.cuda.max_memory_allocated(device) - before
    process = psutil.Process()
    _trim_heap()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds = seconds_of(work, device)
    finally:
        done.set()
        watcher.join()
    return seconds, peak - before


def _trim_heap() -> None:
    """Return freed memory to the system, so that `work` cannot reuse it unseen."""
    libc = ctypes.util.find_library("c")
    if libc is not None and hasattr(ctypes.CDLL(libc), "malloc_trim"):
        ctypes.CDLL(libc).malloc_trim(0)
