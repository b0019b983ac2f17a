"""Where a torch network needs quantizers: NNCF follows its operators. The one file that imports it.

NNCF finds the places, those inside of a ``forward`` that no module marks among them, and hooks into
them. Its own quantizers are then taken out and ours put in their place, which need no compiler: on
the first use of NNCF 3.4's, it compiles C++ into the home folder, and where that works, what comes
out is slower than plain torch.

Importing NNCF sends telemetry and writes ``~/intel`` by way of the package ``openvino_telemetry``,
changes the class of all loggers to come, and prints: here that package is hidden meanwhile, so that
NNCF takes the stub that it has for its absence, and the rest is put back.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from ...export.int8.dialect import Dialect
from ...runtime.engines.telemetry import without_telemetry
from ...runtime.errors import InputError, MissingExtraError
from .fake_quantize import FakeActivations, FakeWeights

_HOOKS = "__nncf_hooks"


def check_installed() -> None:
    """See that NNCF is here, without importing it.

    Raises:
        MissingExtraError: Where it is not.
    """
    if importlib.util.find_spec("nncf") is None:
        raise MissingExtraError("nncf", "compress", "quantization-aware training")


class _Whole(nn.Module):
    """A network whose ``forward`` runs all of its children, to which NNCF would add one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: torch.Tensor) -> Any:  # the name that its forward has
        """Run the network."""
        return self.network(input)


def with_quantizers(
    network: nn.Module, batches: Sequence[dict[str, torch.Tensor]], dialect: Dialect, source: str
) -> nn.Module:
    """A copy of a network with fake quantizers where the dialect has codes.

    Activations begin with the least and the largest value of the batches. In training, too, its
    BatchNorms use the statistics that they have: those will be folded into the weights.

    Args:
        network: In evaluation mode; it stays as it is.
        batches: Some pictures by input name, the batch in dimension 0.
        dialect: How it will be written.
        source: What messages call it.

    Raises:
        InputError: ``E_QUANTIZERS`` for a network that NNCF cannot follow, or in which it finds no
            place for a quantizer.
        MissingExtraError: Where NNCF is not installed.
    """
    check_installed()
    sequential: Any = nn.Sequential  # torch leaves the type of its forward partly open
    runs_children = type(network).forward is sequential.forward
    whole = _Whole(network) if runs_children else network
    try:
        with _alone():
            placed = _placed(whole, batches, dialect)
            count = _replace(placed, batches[0], dialect)
    except Exception as error:
        raise InputError(
            "E_QUANTIZERS",
            f"NNCF cannot put quantizers into {source}: {type(error).__name__}: {_line(error)}",
            mend="Take the recipe without qat: int8 needs no training. Or train it with fake "
            "quantizers of your own, and have edgepress transcode what your exporter writes.",
        ) from error
    if not count:
        raise InputError(
            "E_QUANTIZERS",
            f"NNCF finds nothing in {source} that could run in INT8.",
            mend="Take the recipe without qat.",
        )
    modules: Any = placed.modules()  # whose type torch leaves partly open
    for one in modules:
        if isinstance(one, _BatchNorm) and one.running_mean is not None:
            one.register_forward_pre_hook(_steady)
    return placed


def _steady(norm: nn.Module, _: object) -> None:
    norm.training = False


def plain_weights(trained: nn.Module, network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights and statistics of a network that :func:`with_quantizers` copied.

    Args:
        trained: What came of the copy.
        network: What was copied; its names are meant.
    """
    found: dict[str, torch.Tensor] = trained.state_dict()
    prefix = "network." if isinstance(trained, _Whole) else ""
    return {name: found[prefix + name] for name in network.state_dict()}


def _placed(
    network: nn.Module, batches: Sequence[dict[str, torch.Tensor]], dialect: Dialect
) -> nn.Module:
    import nncf  # pyright: ignore[reportMissingTypeStubs]

    backend: Any = nncf
    preset = backend.QuantizationPreset
    return backend.quantize(
        network,
        backend.Dataset(list(batches)),
        subset_size=len(batches),
        preset=preset.PERFORMANCE if dialect.symmetric else preset.MIXED,
        advanced_parameters=backend.AdvancedQuantizationParameters(
            disable_bias_correction=True,  # the training does that
            overflow_fix=backend.OverflowFix.DISABLE,  # the dialect knows how large weights may be
        ),
    )


class _Probe(nn.Module):
    """Sees what comes to a quantizer, and lets it through."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        with torch.no_grad():
            low, high = given.get_input_low_input_high()
            self.range = float(low.min()), float(high.max())
        self.shape: tuple[int, ...] = tuple(given.scale_shape)
        self.weight_ranks: list[int] = []

    def forward(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            self.weight_ranks.append(value.ndim)
        return value

    def ours(self, dialect: Dialect) -> nn.Module:
        """The quantizer that belongs here; an Identity where the dialect has no codes."""
        if not self.weight_ranks:
            plain = dialect.weight_only
            return nn.Identity() if plain else FakeActivations(*self.range, dialect.symmetric)
        kinds = {"Conv"} if self.weight_ranks[0] > 2 else {"Gemm", "MatMul"}
        if not kinds & dialect.weighted:
            return nn.Identity()
        wide = [at for at, size in enumerate(self.shape) if size > 1]
        return FakeWeights(wide[0] if wide else None, dialect.weight_limit)


def _replace(placed: nn.Module, feeds: dict[str, torch.Tensor], dialect: Dialect) -> int:
    """Put our quantizers in the place of NNCF's, which never run; how many there are."""
    storage: Any = placed.get_submodule(_HOOKS)  # whose named_modules() torch leaves partly open
    probes: dict[nn.Module, _Probe] = {}
    places: list[tuple[str, _Probe]] = []
    named: list[tuple[str, nn.Module]] = list(storage.named_modules(remove_duplicate=False))
    for name, given in named:
        if hasattr(given, "get_input_low_input_high"):
            probe = probes.setdefault(given, _Probe(given))
            storage.set_submodule(name, probe)
            places.append((name, probe))
    with torch.no_grad():
        placed(**feeds)
    made = {probe: probe.ours(dialect) for probe in probes.values()}
    for name, probe in places:
        storage.set_submodule(name, made[probe])
    return sum(not isinstance(one, nn.Identity) for one in made.values())


@contextlib.contextmanager
def _alone() -> Generator[None]:
    """Inside, NNCF says nothing and sends nothing."""
    loggers = logging.getLoggerClass()
    said = io.StringIO()
    try:
        with (
            without_telemetry(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.setLoggerClass(loggers)


def _line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)[:300]
