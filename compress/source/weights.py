"""Weights from files that cannot run code: safetensors, or ``.pt`` with ``weights_only=True``."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from ...runtime.errors import InputError
from ...runtime.files import check_file, read_file, write_file
from ..channels.cut_history import METADATA_KEY, History
from .finite_checks import not_finite

_INSIDE = ("state_dict", "model_state_dict", "model", "ema", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_SHOWN = 5


def load_weights(module: torch.nn.Module, path: str) -> tuple[str, History]:
    """Load weights into a module; every key and shape must fit.

    A ``state_dict`` inside a checkpoint and a ``module.`` prefix (of DataParallel) are understood.
    Where the file is a pruned network's (:func:`save_weights`), the module is pruned first, as its
    history says.

    Args:
        module: What the factory gave; changed in place.
        path: A ``.safetensors`` file, or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` that holds
            tensors only.

    Returns:
        The SHA-256 of the file, in hexadecimal, and what pruning was done to the network in it.

    Raises:
        InputError: ``E_FILE`` for a file that is not there or cannot be read, ``E_WEIGHTS`` for one
            that is cut short, of no known form, or of another network (the first keys that differ
            are named with their shapes), ``E_PICKLE`` for one that could only be read by running
            code in it, ``E_NAN`` for values that are not finite, ``E_HISTORY`` for a pruned network
            of another factory.
    """
    data = read_file(path)
    history = _history(data, path)
    history.apply(module)
    own = module.state_dict()
    state = _unwrapped(read_state(data, path), own)
    _check_same_network(state, own, path)
    key = not_finite(module, state)
    if key is not None:
        raise InputError(
            "E_NAN",
            f"the weight '{key}' in '{path}' has values that are NaN or infinite.",
            mend="Such a network computes nothing useful; take an earlier checkpoint.",
            path=path,
        )
    try:
        module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(
            "E_WEIGHTS",
            f"'{path}' cannot be loaded: {error}",
            mend="Give weights that were saved from the network of this factory.",
            path=path,
        ) from error
    return hashlib.sha256(data).hexdigest(), history


def save_weights(
    module: torch.nn.Module, out: str | Path, *, history: History | None = None, force: bool = False
) -> None:
    """Write a module's tensors as safetensors, with what pruning did to it.

    Args:
        module: A network; one that was pruned and perhaps trained since.
        out: The ``.safetensors`` file.
        history: What pruning did to it
            (:attr:`~edgepress.compress.channels.cut_history.Pruned.history`).
        force: Replace a file that is there.

    Raises:
        InputError: ``E_USAGE`` for another ending; as :func:`~edgepress.runtime.files.write_file`.
    """
    check_weights_out(out, force=force)
    metadata = {} if history is None else {METADATA_KEY: history.to_json()}
    write_file(pack_tensors(module.state_dict(), metadata), Path(out), force=force)


def check_weights_out(out: str | Path, *, force: bool) -> None:
    """Check that weights may be written to ``out``, before the work that makes them begins.

    Raises:
        InputError: ``E_USAGE`` for another ending than ``.safetensors``; as
            :func:`~edgepress.runtime.files.check_file`.
    """
    if Path(out).suffix.lower() != ".safetensors":
        raise InputError(
            "E_USAGE", f"'{out}' does not end in .safetensors.", mend="Name it so.", path=str(out)
        )
    check_file(Path(out), force=force)


def _history(data: bytes, path: str) -> History:
    """The pruning history in a safetensors file's metadata; an empty one where there is none."""
    if not path.lower().endswith(".safetensors"):
        return History()
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        return History()  # no whole safetensors file: what reads the tensors says so
    try:
        held: Any = json.loads(data[8 : 8 + length])
        text: object = held["__metadata__"][METADATA_KEY]
    except (ValueError, TypeError, KeyError, RecursionError):
        return History()
    return History.from_json(str(text), path)


def read_state(data: bytes, path: str) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name.

    Args:
        data: What is in the file.
        path: Its name: the ending ``.safetensors`` tells the form, and messages name it.

    Raises:
        InputError: ``E_WEIGHTS`` or ``E_PICKLE``, as :func:`load_weights`.
    """
    whole = path.lower().endswith(".safetensors")
    held = _safetensors(data, path) if whole else _torch(data, path)
    for key in _INSIDE:
        inner = held.get(key)
        if isinstance(inner, Mapping):
            held = cast("Mapping[object, object]", inner)
            break
    state = {str(key): value for key, value in held.items() if isinstance(value, torch.Tensor)}
    if not state:
        keys = ", ".join(list(map(str, held))[:_SHOWN])
        raise InputError(
            "E_WEIGHTS",
            f"'{path}' holds no tensors (its keys: {keys or 'none'}).",
            mend="Save the network's state_dict(), as safetensors or with torch.save.",
            path=path,
        )
    return state


def _unwrapped(
    state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Without the prefixes that all keys have, unless the network's own keys have them too."""
    while not any(key in own for key in state):
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _check_same_network(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: str
) -> None:
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if not (missing or unknown or shapes):
        return
    lines = [
        *(f"{k}: file {_size(state[k])}, network {_size(own[k])}" for k in shapes[:_SHOWN]),
        *(f"{k}: not in the file, network {_size(own[k])}" for k in missing[:_SHOWN]),
        *(f"{k}: file {_size(state[k])}, not in the network" for k in unknown[:_SHOWN]),
    ]
    rest = len(missing) + len(unknown) + len(shapes) - len(lines)
    if rest > 0:
        lines.append(f"and {rest} more")
    raise InputError(
        "E_WEIGHTS",
        f"'{path}' holds the weights of another network ({len(shapes)} shapes differ, "
        f"{len(missing)} keys are missing, {len(unknown)} are unknown):\n  " + "\n  ".join(lines),
        mend="Give the weights of this factory, or the factory of these weights.",
        path=path,
    )


def _size(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _safetensors(data: bytes, path: str) -> Mapping[object, object]:
    import safetensors.torch

    try:
        return cast("Mapping[object, object]", safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(
            "E_WEIGHTS",
            f"'{path}' is no whole safetensors file: {error}",
            mend="It may have been cut short: copy it again.",
            path=path,
        ) from error


def _torch(data: bytes, path: str) -> Mapping[object, object]:
    try:
        with warnings.catch_warnings():  # what torch thinks of the file, our error says better
            warnings.simplefilter("ignore")
            held: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # RuntimeError, EOFError, KeyError, ... for damaged files
        raise _unreadable(error, data, path) from error
    if not isinstance(held, Mapping):
        raise InputError(
            "E_WEIGHTS",
            f"'{path}' holds a {type(held).__name__}, not a dict of tensors.",
            mend="Save the network's state_dict().",
            path=path,
        )
    return cast("Mapping[object, object]", held)


def _unreadable(error: Exception, data: bytes, path: str) -> InputError:
    """``E_PICKLE`` where torch refused a pickle or a script, ``E_WEIGHTS`` for a damaged file."""
    text = str(error)
    is_pickle = "GLOBAL" in text or data.startswith(b"\x80")
    if (isinstance(error, pickle.UnpicklingError) and is_pickle) or "TorchScript" in text:
        return InputError(
            "E_PICKLE",
            f"'{path}' holds more than tensors: reading it would run code that is in it.",
            mend="Where you trust it, load it yourself and save model.state_dict() as safetensors.",
            path=path,
        )
    first = text.strip().partition("\n")[0]
    told = "" if isinstance(error, pickle.UnpicklingError) else f": {first or type(error).__name__}"
    return InputError(
        "E_WEIGHTS",
        f"'{path}' cannot be read as weights{told[:200]}.",
        mend="It may have been cut short, or be no torch file: copy or save it again.",
        path=path,
    )


def pack_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with these tensors and texts."""
    import safetensors.torch

    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return safetensors.torch.save(plain, dict(metadata))


def unpack_tensors(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What :func:`pack_tensors` put into a file.

    Raises:
        InputError: ``E_FILE`` where it cannot be read, ``E_WEIGHTS`` where it is no such file.
    """
    data = read_file(path)
    tensors = _safetensors(data, path)
    header: Any = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    texts = cast("Mapping[str, str]", header.get("__metadata__", {}))
    return cast("dict[str, torch.Tensor]", dict(tensors)), dict(texts)
