"""Blocks of inferences of one network, or of two in turn, in one fresh process after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..statistics import percentile_floor
from .fingerprint import load_average, processor_ticks
from .measurement import Preset
from .processes import TimedBlock, Worker
from .worker import WorkerRequest, WorkerStarted

ShareDone: TypeAlias = Callable[[float], None]
"""Told how much is done, 0 to 1; never less than before."""

_ORDERS = {1: ((0,),), 2: ((0, 1, 1, 0), (1, 0, 0, 1))}
_WINDOWS = 3
_MAX_WINDOWS = 25
_AGREE = 1.1
_MAX_BLOCK = 2000


class Recording:
    """What one network's workers have told so far.

    Attributes:
        request: What the workers run.
        started: What each fresh process took to start.
        medians: The median latency of each block, in milliseconds, in the order of running.
        cpu_ms: CPU time of all blocks.
        peak_memory_bytes: The largest of the processes', or ``None``.
        warmed_up: Whether every warm-up came to rest.
        load_average: Of the last minute when it began.
        steal_percent: Of the processors' time while it ran.
    """

    def __init__(self, request: WorkerRequest) -> None:
        self.request = request
        self.started: list[WorkerStarted] = []
        self.medians: list[float] = []
        self.cpu_ms = 0.0
        self.peak_memory_bytes: int | None = None
        self.warmed_up = True
        self.load_average: float | None = None
        self.steal_percent: float | None = None
        self.count = 0
        self._blocks: list[NDArray[np.float64]] = []

    @property
    def samples_ms(self) -> NDArray[np.float64]:
        """All latencies, ``(n,)``."""
        return np.concatenate(self._blocks)

    def starting(self, name: str) -> float:
        """The median over the processes of one of the times in :class:`WorkerStarted`."""
        return float(np.median([getattr(started, name) for started in self.started]))

    def add(self, block: TimedBlock) -> None:
        """Keep one block."""
        self._blocks.append(block.latencies_ms)
        self.medians.append(float(np.median(block.latencies_ms)))
        self.cpu_ms += block.cpu_ms
        self.count += len(block.latencies_ms)

    def ended(self, peak_memory_bytes: int | None) -> None:
        """Keep the peak of a process that is done."""
        if peak_memory_bytes is not None:
            self.peak_memory_bytes = max(self.peak_memory_bytes or 0, peak_memory_bytes)


def run_rounds(
    recordings: Sequence[Recording],
    preset: Preset,
    settled: Callable[[], bool],
    progress: ShareDone | None = None,
) -> bool:
    """Measure one network, or two in turn (A B B A, then B A A B, and so on).

    Fresh processes are started for each share of the preset's least time, and go on being started
    until the numbers are settled or the time is up.

    Args:
        recordings: One or two; filled here.
        preset: How long. Its times count for each network.
        settled: Whether the interval is narrow enough.
        progress: Told how much is done.

    Returns:
        Whether it was settled in the end.
    """
    orders = _ORDERS[len(recordings)]
    least = preset.min_seconds * len(recordings)
    cap = preset.max_seconds * len(recordings)
    share = least / preset.processes
    ticks = processor_ticks()
    for recording in recordings:
        recording.load_average = load_average()
    spent = 0.0
    rounds = 0
    chunk = 0
    while True:
        chunk += 1
        with ExitStack() as stack:
            workers: list[Worker] = []
            sizes: list[int] = []
            for recording in recordings:
                worker = stack.enter_context(Worker(recording.request))
                recording.started.append(worker.start())
                workers.append(worker)
            for recording, worker in zip(recordings, workers, strict=True):
                size, calm = _warm_up(worker, recording.started[-1].first_ms, preset.block_ms)
                recording.warmed_up = recording.warmed_up and calm
                sizes.append(size)
            until = time.perf_counter() + share
            while time.perf_counter() < until or _too_few(recordings):
                before = time.perf_counter()
                for which in orders[rounds % len(orders)]:
                    recordings[which].add(workers[which].block(sizes[which]))
                rounds += 1
                spent += time.perf_counter() - before
                if progress is not None:
                    progress(_share_done(spent, least, cap))
            for recording, worker in zip(recordings, workers, strict=True):
                recording.ended(worker.peak_memory_bytes())
        counted = all(recording.count >= preset.min_count for recording in recordings)
        done = chunk >= preset.processes and counted and settled()
        if done or (spent >= cap and chunk >= preset.processes):
            break
    steal = _steal_percent(ticks, processor_ticks())
    for recording in recordings:
        recording.steal_percent = steal
    if progress is not None:
        progress(1.0)
    return done


def _share_done(spent: float, least: float, cap: float) -> float:
    """The least time is nine tenths of the way; the rest of it leads to the cap."""
    if spent < least:
        return 0.9 * spent / least
    return 0.9 + 0.1 * min(1.0, (spent - least) / (cap - least) if cap > least else 1.0)


def _too_few(recordings: Sequence[Recording]) -> bool:
    return any(recording.count < percentile_floor(0.5) for recording in recordings)


def _warm_up(worker: Worker, first_ms: float, block_ms: float) -> tuple[int, bool]:
    """Run until three windows' medians agree within 10 %.

    Returns:
        How many inferences make a block, and whether the windows ever agreed.
    """
    medians: list[float] = []
    typical = first_ms
    for _ in range(_MAX_WINDOWS):
        latencies = worker.block(_block_size(typical, block_ms)).latencies_ms
        typical = float(np.median(latencies))
        medians.append(typical)
        last = medians[-_WINDOWS:]
        if len(last) == _WINDOWS and max(last) <= _AGREE * min(last):
            return _block_size(typical, block_ms), True
    return _block_size(typical, block_ms), False


def _block_size(typical_ms: float, block_ms: float) -> int:
    return max(1, min(_MAX_BLOCK, round(block_ms / max(typical_ms, 1e-6))))


def _steal_percent(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[0] <= before[0]:
        return None
    return 100 * (after[1] - before[1]) / (after[0] - before[0])
