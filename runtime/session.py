"""A bundle on an engine: verified, proved by its golden outputs, then run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType

import numpy as np

from .bundle.bundle import Bundle
from .engine_registry import open_engine
from .engines.build_options import BuildOptions
from .engines.engine import Engine, EngineOptions, computed_in
from .errors import BundleError, EngineError, InputError
from .pictures.picture_reader import PictureSource
from .pictures.preprocessing import Preprocessing
from .prediction import Prediction
from .self_test import SelfTest, check_schema, self_test
from .tensors import Array, Arrays, TensorSpec
from .variants.fastest_variant import fastest_variant
from .variants.variant_selection import (
    VariantChoice,
    choose_variant,
    lesser_variant_notes,
    variant_in_engine,
)

MAX_INPUT_BYTES = 1024**3
"""Bytes of all inputs of one run together; more is asked for in parts."""

_CHUNK = 16


class Session:
    """A verified bundle, ready to run: made by `Session.open`, a context manager.

    ::

        with Session.open("resnet.bundle") as session:
            best = session.predict("dog.jpg").top(1)[0]
            outputs = session.run({"input": batch})

    Attributes:
        bundle: What runs.
        variant: The one of its models that runs.
        inputs: What `run` takes.
        outputs: What `run` gives.
        selftest: What the self-test found, one entry for each output; empty where it was left out.
        notes: In words, what does not run here as it was meant to, such as a model whose precision
            this processor does not have.
    """

    def __init__(
        self, bundle: Bundle, choice: VariantChoice, engine: Engine, selftest: tuple[SelfTest, ...]
    ) -> None:
        self.bundle = bundle
        self.variant = choice.variant
        self.inputs: tuple[TensorSpec, ...] = engine.inputs
        self.outputs: tuple[TensorSpec, ...] = engine.outputs
        self.selftest = selftest
        self.notes = lesser_variant_notes(bundle, choice)
        self._engine = engine
        self._choice = choice
        self._floats = [spec.name for spec in engine.inputs if spec.dtype.startswith("float")]

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | Bundle,
        *,
        threads: int = 0,
        engine: str | None = None,
        variant: str | None = None,
        fastest: bool = False,
        cache: str | os.PathLike[str] | None = None,
        build: BuildOptions | None = None,
        allow_fallback: bool = False,
        selftest: bool = True,
    ) -> Session:
        """Verify a bundle, load one of its models and prove it by the golden outputs.

        Args:
            source: A bundle's folder or zip, or one that is open already.
            threads: Threads for one inference; 0 leaves the choice to the engine.
            engine: The engine to run on; by default that of the variant. One in plain ONNX runs on
                any.
            variant: Name of the variant; by default the first whose engine is here and whose
                dialect suits this processor (`facts` tells which, and what was passed over).
            fastest: Time the variants that suit, a second or two each, and take the quickest. Where
                their engines have to be built (TensorRT's) that takes minutes: give a ``cache``.
            cache: A folder that keeps what was quickest, and engines that had to be built for
                this device; without one nothing is written, such an engine is built anew each time,
                and with ``fastest`` once to be timed and once more to run.
            build: How an engine that has to be built (TensorRT's) is: the sizes of a free batch and
                of other free dimensions, its memory, a DLA core. By default as ``cache`` remembers
                that it was last asked for, by this or by ``edgepress engine``.
            allow_fallback: Whether another provider than the engine's own may serve; `facts` tells.
            selftest: Whether to run the golden inputs. Leave it out only where the same bundle
                was proved on the same machine before.

        Raises:
            InputError: ``E_FILE`` or ``E_VARIANT`` for what is not there, ``E_USAGE`` for a
                ``variant`` and ``fastest`` together; ``E_SHAPE`` where an engine has to be built
                for sizes that neither ``build`` nor ``cache`` tells.
            EngineError: ``E_ENGINE``, ``E_PROVIDER``, or ``E_DIALECT`` where the engine cannot
                serve; ``E_PRECISION`` where it has not the variant's precision on this processor.
            BundleError: Where the bundle is damaged or refused: ``E_HASH`` and the other codes of
                `Bundle.open`, ``E_BACKEND`` for a model that the engine cannot load, ``E_SCHEMA``
                for one with other inputs or outputs than declared, ``E_SELFTEST`` for one that
                gives other numbers than when it was made.
        """
        bundle = source if isinstance(source, Bundle) else Bundle.open(source)
        choice = _choice(bundle, variant, engine, fastest, threads, cache, build)
        chosen = choice.variant
        options = EngineOptions(
            threads=threads,
            allow_fallback=allow_fallback,
            precision=computed_in(chosen.precision),
            cache=None if cache is None else os.fspath(cache),
            build=build,
            remember=True,
        )
        running = open_engine(chosen.engine)(bundle.model(chosen), options)
        try:
            running.__enter__()
        except EngineError as error:
            if error.code != "E_BACKEND":
                raise
            raise BundleError(
                "E_BACKEND", f"'{chosen.file}': {error.message}", mend=error.mend, path=chosen.file
            ) from error
        try:
            check_schema(bundle, chosen, running)
            found = self_test(bundle, chosen, running) if selftest else ()
        except BaseException:
            running.__exit__(None, None, None)
            raise
        return cls(bundle, choice, running, found)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine; closing twice does no harm."""
        self._engine.__exit__(None, None, None)

    @property
    def largest_batch(self) -> int | None:
        """Most samples in one run, of an engine that was built for no more; else ``None``."""
        return self._engine.largest_batch

    def facts(self) -> dict[str, object]:
        """What serves: engine, version, providers, threads, whether it fell back; the variant.

        ``chosen`` tells why that variant, ``passed_over`` what was looked at beside it.
        """
        return {
            **self._engine.facts(),
            "variant": self.variant.name,
            "chosen": self._choice.reason,
            "passed_over": dict(self._choice.passed_over),
        }

    def run(self, feeds: Mapping[str, Array]) -> Arrays:
        """Run the model once.

        Args:
            feeds: One array for each of `inputs`, by name, of its dtype and shape, floats finite.

        Returns:
            One array for each of `outputs`, by name.

        Raises:
            InputError: ``E_INPUT`` for other names, dtypes or shapes, an empty batch, inputs of
                over 1 GiB together, NaN or infinity.
            EngineError: ``E_CLOSED`` after `close`, ``E_BACKEND`` where the engine fails.
        """
        size = 0
        for array in feeds.values():
            size += getattr(array, "nbytes", 0)
        if size > MAX_INPUT_BYTES:
            raise InputError(
                "E_INPUT",
                f"the inputs have {size} bytes, {MAX_INPUT_BYTES} are allowed in one run.",
                mend="Run smaller batches one after another.",
            )
        for name in self._floats:
            array = feeds.get(name)
            if isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.size:
                _check_finite(name, array)
        return self._engine.run(feeds)

    def predict(self, picture: PictureSource) -> Prediction:
        """Read a picture, preprocess it as the bundle says, and run it.

        Args:
            picture: A path, the bytes of a picture file, a Pillow image, or uint8 ``(H, W[, C])``.

        Raises:
            InputError: ``E_PICTURE`` for what is no picture, ``E_INPUT`` where its size is not the
                network's or the network takes more than one input, ``E_PREPROCESSING`` where the
                bundle has none.
            EngineError: As `run`.
        """
        return next(self.predict_many([picture]))

    def predict_many(self, pictures: Iterable[PictureSource]) -> Iterator[Prediction]:
        """`predict` for each picture, lazily and in order, in batches where the network allows.

        Raises:
            InputError: As `predict`, when the picture is reached.
            EngineError: As `run`.
        """
        if self.bundle.preprocessing is None:
            raise InputError(
                "E_PREPROCESSING",
                "the bundle has no preprocessing, so it cannot take pictures.",
                mend="Use run() with arrays: " + "; ".join(map(str, self.inputs)),
            )
        if len(self.inputs) != 1:
            raise InputError(
                "E_INPUT",
                f"the network takes {len(self.inputs)} inputs, a picture is one.",
                mend="Use run() with arrays: " + "; ".join(map(str, self.inputs)),
            )
        return self._predictions(iter(pictures), self.bundle.preprocessing)

    def _predictions(
        self, pictures: Iterator[PictureSource], preprocessing: Preprocessing
    ) -> Iterator[Prediction]:
        at_once, padded = _batching(self.inputs[0], self.outputs)
        at_once = min(at_once, self.largest_batch or at_once)
        waiting: list[Array] = []
        for source in pictures:
            row = preprocessing(source).astype(self.inputs[0].dtype, copy=False)
            if waiting and waiting[0].shape != row.shape:
                yield from self._flush(waiting, padded)
                waiting = []
            waiting.append(row)
            if len(waiting) == at_once:
                yield from self._flush(waiting, padded)
                waiting = []
        if waiting:
            yield from self._flush(waiting, padded)

    def _flush(self, rows: list[Array], padded: int) -> Iterator[Prediction]:
        filled = rows + [rows[-1]] * (padded - len(rows))
        batch = filled[0] if len(filled) == 1 else np.concatenate(filled)
        outputs = self.run({self.inputs[0].name: batch})
        for index in range(len(rows)):
            one = outputs if len(filled) == 1 else _row(outputs, index)
            yield Prediction(one, self.bundle.task, self.bundle.labels)


def _choice(
    bundle: Bundle,
    variant: str | None,
    engine: str | None,
    measured: bool,
    threads: int,
    cache: str | os.PathLike[str] | None,
    build: BuildOptions | None,
) -> VariantChoice:
    if variant is not None and measured:
        raise InputError(
            "E_USAGE",
            f"the variant '{variant}' and the fastest one were asked for.",
            mend="Ask for one of the two.",
        )
    if variant is not None:
        held = bundle.variant(variant)
        chosen = variant_in_engine(held, engine)
        if chosen is None:
            raise EngineError(
                "E_DIALECT",
                f"the variant '{held.name}' is {held.dialect} for the engine {held.engine}, "
                f"the engine {engine} was asked for.",
                mend="Choose a variant for that engine, or leave the engine to the bundle.",
            )
        return VariantChoice(chosen, "asked for")
    if not measured:
        return choose_variant(bundle, engine)
    return fastest_variant(
        bundle, Session.open, threads=threads, engine=engine, cache=cache, build=build
    )


def _row(outputs: Arrays, index: int) -> Arrays:
    return {name: array[index : index + 1] for name, array in outputs.items()}


def _batching(source: TensorSpec, outputs: Sequence[TensorSpec]) -> tuple[int, int]:
    """How many pictures go into one run, and to how many a last batch is padded (0: not at all).

    Several go together only where every output has the batch as its dimension 0.
    """
    batch = source.shape[0] if source.shape else 1
    together = all(spec.shape and spec.shape[0] == batch for spec in outputs)
    if isinstance(batch, int):
        return (batch, batch) if together else (1, batch)
    return (_CHUNK, 0) if together else (1, 0)


def _check_finite(name: str, array: Array) -> None:
    # NaN passes neither comparison; two reductions are quicker than an array of truths
    low, high = np.minimum.reduce(array, axis=None), np.maximum.reduce(array, axis=None)
    if not (-np.inf < low and high < np.inf):
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise InputError(
            "E_INPUT",
            f"input '{name}' holds {bad} values that are NaN or infinite.",
            mend="Expected finite numbers: check what made the array.",
            path=name,
        )
