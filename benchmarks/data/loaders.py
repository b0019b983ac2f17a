"""The user's own loader: batches that are preprocessed already, gathered once into arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...runtime.tensors import Array, Arrays, TensorSpec
from .sources import Labels, class_indices, data_error

LABEL_KEYS = ("label", "labels")
"""The keys of a dict that hold class indices instead of an input."""

_ITEMS = (
    "Each item must be a batch: an array (N, ...), a tuple of arrays, inputs first, labels last, "
    "or a dict of arrays by input name, with labels under 'label' or 'labels'"
)


@dataclass(frozen=True)
class TensorSamples:
    """Preprocessed samples in memory.

    Attributes:
        where: How messages call the data.
        arrays: By input name, or by position (keys ``0``, ``1``, ...) where the loader gave no
            names; all of the same length along dimension 0.
        labels: int64 ``(N,)``, or ``None``.
        named: Whether the keys are input names.
    """

    where: str
    arrays: dict[str, Array]
    labels: Labels | None
    named: bool
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def specs(self, names: Sequence[str]) -> tuple[TensorSpec, ...]:
        """What a network would have to take for these samples to fit its inputs ``names``.

        Raises:
            InputError: ``E_DATA`` where there are fewer arrays than names, or none of that name.
        """
        free = [TensorSpec(name, "float32", ("N",)) for name in names]
        if self.named:
            missing = [name for name in names if name not in self.arrays]
            arrays = [self.arrays[name] for name in names if name in self.arrays]
        else:
            missing = list(names[len(self.arrays) :])
            arrays = list(self.arrays.values())[: len(names)]
        if missing:
            raise data_error(
                f"the network's inputs {missing} are not in the data, which has "
                f"{list(self.arrays)}.",
                "Give dicts with one array for each input: " + "; ".join(one.name for one in free),
                self.where,
            )
        return tuple(
            TensorSpec(name, array.dtype.name, ("N", *array.shape[1:]))
            for name, array in zip(names, arrays, strict=True)
        )

    def select(self, inputs: Sequence[TensorSpec]) -> Arrays:
        """The arrays for these inputs, by name, whole.

        What a positional loader gives beyond the network's inputs (masks, boxes) is left aside;
        what a dict has under other names as well.

        Raises:
            InputError: ``E_DATA`` where an input has no array, or one of another dtype or shape.
        """
        if self.named:
            missing = [spec.name for spec in inputs if spec.name not in self.arrays]
            if missing:
                raise data_error(
                    f"the network's inputs {missing} are not in the data, which has "
                    f"{list(self.arrays)}.",
                    "Give dicts with one array for each input: " + "; ".join(map(str, inputs)),
                    self.where,
                )
            chosen = {spec.name: self.arrays[spec.name] for spec in inputs}
        else:
            if len(self.arrays) < len(inputs):
                raise data_error(
                    f"the network has {len(inputs)} inputs, the data's items {len(self.arrays)}.",
                    "Give dicts with one array for each input: " + "; ".join(map(str, inputs)),
                    self.where,
                )
            chosen = {
                spec.name: array for spec, array in zip(inputs, self.arrays.values(), strict=False)
            }
        for spec in inputs:
            _check_fit(spec, chosen[spec.name], self.where)
        return chosen


@dataclass
class _Gathered:
    parts: dict[str, list[Array]] = field(default_factory=dict[str, "list[Array]"])
    labels: list[NDArray[Any]] = field(default_factory=list[NDArray[Any]])
    named: bool | None = None


def collect_samples(items: Iterable[object], where: str = "iterable") -> TensorSamples:
    """Go through an iterable once and keep what it gives.

    An item is a batch: an array or torch tensor ``(N, ...)``, a tuple or list of them, or a dict by
    input name. The last element of a tuple is the labels where it is integers ``(N,)`` or ``(N,
    1)``; in a dict they stand under ``label`` or ``labels``. A tuple or dict whose label is a
    single integer is one sample, and gets its batch dimension here.

    Raises:
        InputError: ``E_DATA`` for an iterable that is empty, gives something that is no array, or
            gives items that do not fit each other.
    """
    gathered = _Gathered()
    for number, item in enumerate(items):
        named, arrays, labels = _take_apart(item, f"{where}, item {number}")
        if gathered.named is None:
            gathered.named = named
            gathered.parts = {name: [] for name in arrays}
        if named != gathered.named or set(arrays) != set(gathered.parts):
            raise data_error(
                f"{where}, item {number} has {sorted(arrays)}, not {sorted(gathered.parts)}.",
                "Every item must have the same parts",
                where,
            )
        if (labels is None) != (len(gathered.labels) == 0) and number > 0:
            raise data_error(f"{where}: some items have labels and some have none.", "", where)
        for name, array in arrays.items():
            before = gathered.parts[name]
            if before and (
                before[0].shape[1:] != array.shape[1:] or before[0].dtype != array.dtype
            ):
                raise data_error(
                    f"{where}, item {number}: '{name}' is {array.dtype} {array.shape}, "
                    f"the items before {before[0].dtype} {before[0].shape}.",
                    "All items must have one dtype and one shape (but for the batch, dimension 0)",
                    where,
                )
            before.append(array)
        if labels is not None:
            gathered.labels.append(labels)
    if gathered.named is None:
        raise data_error(f"{where} gave nothing.", _ITEMS, where)
    arrays = {name: np.concatenate(parts) for name, parts in gathered.parts.items()}
    count = len(next(iter(arrays.values())))
    labels = np.concatenate(gathered.labels) if gathered.labels else None
    checked = None if labels is None else class_indices(labels, count, where)
    return TensorSamples(where, arrays, checked, gathered.named)


def _take_apart(item: object, where: str) -> tuple[bool, dict[str, Array], NDArray[Any] | None]:
    """Whether the item names its parts, its arrays, its labels ``(N,)``."""
    named = isinstance(item, Mapping)
    if isinstance(item, Mapping):
        entries = cast("Mapping[object, object]", item)
        parts = {str(key): _array(entry, f"{where}['{key}']") for key, entry in entries.items()}
        keys = [key for key in LABEL_KEYS if key in parts]
        labels = parts.pop(keys[0]) if keys else None
    else:
        elements = cast("Sequence[object]", item) if isinstance(item, (tuple, list)) else (item,)
        parts, labels = _take_tuple_apart(elements, where)
    if not parts:
        raise data_error(f"{where} has no inputs.", _ITEMS, where)
    if labels is not None and labels.ndim == 0:
        parts = {name: array[None] for name, array in parts.items()}
        labels = labels[None]
    sizes = {name: array.shape[0] if array.ndim else None for name, array in parts.items()}
    count = next(iter(sizes.values()))
    if not count or any(size != count for size in sizes.values()):
        raise data_error(f"{where}: batch sizes are {sizes}.", _ITEMS, where)
    if labels is not None:
        labels = class_indices(labels, count, where)
    return named, parts, labels


def _take_tuple_apart(
    elements: Sequence[object], where: str
) -> tuple[dict[str, Array], NDArray[Any] | None]:
    arrays: list[Array] = []
    for index, element in enumerate(elements):
        if index and not _is_array(element):
            break  # targets of the user's own form, such as a list of dicts: no task reads them
        arrays.append(_array(element, f"{where}[{index}]"))
    labels = None
    if len(arrays) > 1 and len(arrays) == len(elements):
        last = arrays[-1]
        flat = last.ndim <= 1 or (last.ndim == 2 and last.shape[1] == 1)
        if flat and np.issubdtype(last.dtype, np.integer):
            labels = arrays.pop()
    return {str(index): array for index, array in enumerate(arrays)}, labels


def _is_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, np.generic, int)) or hasattr(value, "detach")


def _array(value: object, where: str) -> Array:
    """A numpy array from an array, a number, or what has torch's ``detach().cpu().numpy()``."""
    tensor: Any = value
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu().numpy()
        array = np.asarray(tensor)
    except (TypeError, ValueError, RuntimeError) as error:
        raise data_error(f"{where} cannot become a numpy array: {error}.", _ITEMS, where) from error
    if array.dtype.kind not in "fiub":
        raise data_error(
            f"{where} is a {type(value).__name__} of dtype {array.dtype}.", _ITEMS, where
        )
    return array


def _check_fit(spec: TensorSpec, array: Array, where: str) -> None:
    sizes, wanted = array.shape[1:], spec.shape[1:]
    fits = len(sizes) == len(wanted) and all(
        isinstance(want, str) or want == size for size, want in zip(sizes, wanted, strict=True)
    )
    if not fits or array.dtype != np.dtype(spec.dtype):
        raise data_error(
            f"the data has {array.dtype} {('N', *sizes)} for the input {spec}.",
            "Give batches of the network's dtype and shape, already preprocessed",
            where,
        )
