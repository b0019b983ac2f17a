"""The latency table: what each layer takes on the target at each width, measured and kept.

Entries are measured through the runtime's engine on probes of the real shapes, in the precision
that will ship, one thread, batch 1, and kept in the cache folder under the fingerprint of all that
they depend on: processor, GPU and driver, engine and its version, precision. Widths between
measured ones are interpolated; narrow layers are measured at every width, since there the steps of
an engine's kernels are largest.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...benchmarks.latency.fingerprint import fingerprint
from ...export.int8.layer_probes import ProbedLayer, layer_probe
from ...runtime.build_shapes import engine_options_for
from ...runtime.cache import make_folder
from ...runtime.engine_registry import find_device, import_backend, open_engine
from ...runtime.engines.engine import Engine
from ...runtime.files import write_file
from ...runtime.target import Target, processor
from ...runtime.tensors import Arrays
from ..channels.layer_shapes import LayerShape
from .layer_costs import LayerWidths

_VERSION = 2
_COPIES = 4
_BLOCK_S = 0.003
_BLOCKS = (5, 100)
_RUNS = (7, 50)  # of a block: its first ones find the caches full of what ran before
_PROBE_S = 0.03
_TOGETHER = 12
_AXIS = 6
_LEAST_SHARE = 0.02

Key = tuple[Any, ...]


def read_cache(path: Path | None) -> dict[str, Any]:
    """What a file of the cache holds; nothing where it is not there or damaged: it is made anew."""
    if path is None:
        return {}
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def timed_ms(engines: Sequence[tuple[Engine, Arrays]], seconds: float) -> list[float]:
    """What one run of each takes: the least of the medians of blocks that are run in turns.

    The least, because everything that a busy machine does to a block makes it longer.

    Args:
        engines: Open engines with what they are fed.
        seconds: How long each is run, about; five blocks at least.
    """
    counts: list[int] = []
    spent = 0.0
    for engine, feeds in engines:
        engine.run(feeds)
        start = time.perf_counter()
        engine.run(feeds)
        once = time.perf_counter() - start + 1e-9
        counts.append(int(np.clip(_BLOCK_S / once, *_RUNS)))
        spent += counts[-1] * once
    best = [np.inf] * len(engines)
    for _ in range(int(np.clip(seconds * len(engines) / spent, *_BLOCKS))):
        for number, (engine, feeds) in enumerate(engines):
            block: list[float] = []
            for _ in range(counts[number]):
                start = time.perf_counter()
                engine.run(feeds)
                block.append(time.perf_counter() - start)
            best[number] = min(best[number], float(np.median(block)))
    return [1e3 * one for one in best]


def time_models(
    models: Sequence[bytes], target: Target, feeds: Arrays | None = None, seconds: float = 1.0
) -> list[float]:
    """Whole networks, timed in turns on one thread, in ms.

    Args:
        models: Their bytes.
        target: What runs them.
        feeds: What they are fed; random numbers by default, free sizes 1.
        seconds: How long each is run, about.
    """
    with ExitStack() as stack:
        kind = open_engine(target.engine)
        held: list[tuple[Engine, Arrays]] = []
        for model in models:
            options = engine_options_for(target.engine, model, feeds or {}, threads=1)
            engine = stack.enter_context(kind(model, options))
            held.append((engine, feeds or _random(engine)))
        return timed_ms(held, seconds)


@dataclass
class LatencyTable:
    """Latencies of layers on one target in one precision.

    Attributes:
        target: What they are measured on.
        precision: ``float32`` or ``int8``.
        folder: Where they are kept, or ``None`` to forget them.
        entries: ms by layer and widths.
    """

    target: Target
    precision: str
    folder: Path | None = None
    entries: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        held: Any = read_cache(self.path)
        for key, value in held.get("ms", {}).items():
            if isinstance(value, float) and value > 0:
                self.entries[str(key)] = value

    @property
    def identity(self) -> dict[str, object]:
        """What the entries depend on besides the layers."""
        machine: Any = fingerprint()
        gpu = find_device(self.target.engine)
        return {
            "version": _VERSION,
            "engine": self.target.engine,
            "engine_version": import_backend(self.target.engine),
            "dialect": self.dialect,
            "processor": processor(),
            "cpu": {key: machine["cpu"][key] for key in ("flags", "governor")},
            "gpu": None if gpu is None else asdict(gpu),
            "threads": 1,
            "batch": 1,
        }

    @property
    def dialect(self) -> str | None:
        """The dialect that probes are written in; ``None`` for float32."""
        return self.target.dialect if self.precision == "int8" else None

    @property
    def path(self) -> Path | None:
        """The file in the cache folder."""
        if self.folder is None:
            return None
        text = json.dumps(self.identity, sort_keys=True)
        return self.folder / f"latency-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def save(self) -> None:
        """Write what was measured into the cache folder."""
        path = self.path
        if path is None:
            return
        make_folder(path.parent)
        held = {"identity": self.identity, "ms": dict(sorted(self.entries.items()))}
        write_file(json.dumps(held, indent=0).encode(), path, force=True)

    def measure(
        self, frame: LayerWidths, widths: Sequence[Sequence[int]], progress: Callable[..., None]
    ) -> None:
        """Fill in what is missing for a network; what was measured before is not measured again.

        Args:
            frame: Its layers.
            widths: Of each group.
            progress: Told how far the work is.
        """
        missing: dict[str, tuple[LayerShape, int, int]] = {}
        for layer, ports in zip(frame.structure.layers, frame.ports, strict=True):
            ins = _axis(frame, layer.in_width, ports.ins, widths)
            outs = _axis(frame, layer.out_width, ports.outs, widths)
            pairs = (
                [(w, w) for w in outs] if layer.depthwise else [(i, o) for i in ins for o in outs]
            )
            for one, two in pairs:
                key = entry(layer, one, two)
                if key not in self.entries:
                    missing[key] = (layer, one, two)
        todo = list(missing.items())
        for start in range(0, len(todo), _TOGETHER):
            progress("measuring layers on the target", start, len(todo))
            some = todo[start : start + _TOGETHER]
            times = self._time([one for _, one in some])
            self.entries.update(dict(zip((key for key, _ in some), times, strict=True)))
        if todo:
            self.save()

    def _time(self, layers: Sequence[tuple[LayerShape, int, int]]) -> list[float]:
        models = [
            layer_probe(_probed(*one), copies, int8_dialect=self.dialect)
            for one in layers
            for copies in (1, _COPIES)
        ]
        times = time_models(models, self.target, seconds=_PROBE_S)
        pairs = zip(times[::2], times[1::2], strict=True)
        return [max((m - o) / (_COPIES - 1), _LEAST_SHARE * o) for o, m in pairs]

    def cost(self, layer: LayerShape, in_width: int, out_width: int) -> float:
        """Ms of a layer at these widths, interpolated between those that were measured."""
        grid = self._grid(layer)
        if layer.depthwise:
            widths = sorted(out for _, out in grid)
            times = [grid[w, w] for w in widths]
            return layer.calls * float(np.interp(out_width, widths, times))
        ins = sorted({one for one, _ in grid})
        by_in: list[float] = []
        for one in ins:
            outs = sorted(two for first, two in grid if first == one)
            by_in.append(float(np.interp(out_width, outs, [grid[one, two] for two in outs])))
        return layer.calls * float(np.interp(in_width, ins, by_in))

    def _grid(self, layer: LayerShape) -> Mapping[tuple[int, int], float]:
        start = _geometry(layer)
        held = self._grids.get(start)
        if held is None or held[0] != len(self.entries):
            found: dict[tuple[int, int], float] = {}
            for key, value in self.entries.items():
                geometry, _, widths = key.rpartition("@")
                if geometry == start:
                    one, _, two = widths.partition(">")
                    found[int(one), int(two)] = value
            held = (len(self.entries), found)
            self._grids[start] = held
        return held[1]

    _grids: dict[str, tuple[int, dict[tuple[int, int], float]]] = field(
        default_factory=dict[str, "tuple[int, dict[tuple[int, int], float]]"], repr=False
    )


def entry(layer: LayerShape, in_width: int, out_width: int) -> str:
    """The name of a layer's entry at these widths."""
    return f"{_geometry(layer)}@{in_width}>{out_width}"


def _geometry(layer: LayerShape) -> str:
    """All that a layer's time depends on but its widths."""
    if layer.kind == "linear":
        return "linear " + "x".join(map(str, layer.in_shape[:-1]))
    sides = "x".join(map(str, layer.in_shape[2:]))
    kind = "depthwise" if layer.depthwise else f"groups{layer.groups}"
    kind = f"transposed-{kind}" if layer.transposed else kind
    told = [
        "x".join(map(str, one))
        for one in (layer.kernel, layer.stride, layer.padding, layer.dilation)
    ]
    return f"conv {kind} {sides} k{told[0]} s{told[1]} p{told[2]} d{told[3]}"


def _probed(layer: LayerShape, in_width: int, out_width: int) -> ProbedLayer:
    if layer.kind == "linear":
        return ProbedLayer("MatMul", (*layer.in_shape[:-1], in_width), out_width)
    shape = (1, in_width, *layer.in_shape[2:])
    groups = in_width if layer.depthwise else layer.groups
    op_type = "ConvTranspose" if layer.transposed else "Conv"
    return ProbedLayer(
        op_type, shape, out_width, groups, layer.kernel, layer.stride, layer.padding, layer.dilation
    )


def _axis(
    frame: LayerWidths,
    full: int,
    side: Sequence[tuple[int, float]],
    widths: Sequence[Sequence[int]],
) -> list[int]:
    """Widths of one side of a layer to measure: all of a few, else some over the whole range."""
    if not side:
        return [full]
    whole = list(frame.whole.kept)
    found = {full}
    for number, _ in side:
        for width in widths[number]:
            kept = [*whole[:number], width, *whole[number + 1 :]]
            found.add(frame.width(full, side, kept))
    if len(side) > 1:
        found.add(frame.width(full, side, [min(each) for each in widths]))
    ordered = sorted(found)
    if len(ordered) <= _AXIS + 2:
        return ordered
    places = np.unique(np.linspace(0, len(ordered) - 1, _AXIS).round().astype(int))
    return [ordered[place] for place in places]


def _random(engine: Engine) -> Arrays:
    draw = np.random.default_rng(2)
    feeds: Arrays = {}
    for spec in engine.inputs:
        shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
        feeds[spec.name] = draw.standard_normal(shape).astype(spec.dtype)
    return feeds
