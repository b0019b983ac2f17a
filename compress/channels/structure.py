"""What can be pruned in a network: found in a child process with a time limit, given as data.

Following the dependencies of some networks takes minutes or never ends, so it happens in a process
that can be ended. The child works on its own copy; what comes back is JSON.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...export.graph.torch_capture import evaluating, run_module, tensors_from
from ...runtime.errors import EdgepressError, InputError
from ...runtime.progress import Progress, silent
from ...runtime.tensors import Array, Arrays
from .channel_groups import ChannelAttribute, Group, Member, RefusedModule, ResidualBlock, Structure
from .channel_surgery import modules_of, own_parameters, why_not
from .cut_verification import CutVerifier, residual_blocks, verified_groups
from .dependencies import DependencyChain, dependency_chains
from .group_builder import groups_of, head_group
from .layer_shapes import LayerShape, layer_shapes

TIME_LIMIT_S = 180.0
_POLL_S = 0.5
_IDLE_S = 10.0  # without any processor time
_HEADS = ("num_heads", "num_attention_heads", "heads", "n_heads")
_SIZES = ("attn_dim", "inner_dim", "all_head_size")  # channels of all heads together
_ALL = (("qkv",), ("to_qkv",), ("q", "k", "v"), ("query", "key", "value"))
_ALL_READ = ("proj", "out_proj", "to_out", "out")


def structure_of(
    module: nn.Module,
    example: Mapping[str, Array],
    *,
    keep: Sequence[str] = (),
    time_limit_s: float = TIME_LIMIT_S,
    progress: Progress = silent,
) -> Structure:
    """Find what can be pruned in a network, and try it.

    Args:
        module: The network; it is left as it is.
        example: Its inputs by name, batch 2 or more, float32 ``(N, C, H, W)`` where they are
            pictures.
        keep: Names of modules that stay whole, with all that they hold.
        time_limit_s: How long it may take.
        progress: Told how far the work is.

    Raises:
        InputError: ``E_KEEP`` for a name that is no module of the network, ``E_FORWARD`` where it
            does not run on the example, ``E_TRACE`` where its dependencies cannot be followed,
            ``E_TIME`` where that takes too long.
    """
    check_keep(module, keep)
    with evaluating(module):
        run_module(module, example)
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        start = time.monotonic()  # before the child is: it may answer before its parent runs again
        work, answer = (module, dict(example), tuple(keep)), b""
        while not answer:  # a child that is stuck is ended, and the next one asked
            answer = _answer(context, work, start, time_limit_s, progress)
    held: Any = json.loads(answer)
    if "error" in held:
        raise InputError("E_TRACE", str(held["error"]), mend=str(held["mend"]))
    return structure_from(held)


def check_keep(module: nn.Module, keep: Sequence[str]) -> None:
    """Refuse names that are no modules of a network.

    Raises:
        InputError: ``E_KEEP``, with the nearest names.
    """
    names = [name for name, _ in modules_of(module) if name]
    for name in keep:
        if name in names:
            continue
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError(
            "E_KEEP",
            f"the network has no module '{name}' to keep.",
            mend=f"Did you mean {' or '.join(near)}?" if near else f"It has {some}.",
            path=name,
        )


def _answer(
    context: Any,
    work: tuple[nn.Module, Arrays, tuple[str, ...]],
    start: float,
    time_limit_s: float,
    progress: Progress,
) -> bytes:
    """What a child of its own says of a network; empty where it got stuck."""
    here, there = context.Pipe(duplex=False)
    child: Any = context.Process(target=_child, args=(there, *work), daemon=True)
    try:
        with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
    except Exception as error:  # without fork the module is sent, and some cannot be
        raise InputError(
            "E_TRACE",
            f"the network cannot be sent to another process: {error}",
            mend="Define its classes in a module, not in a function or a notebook.",
        ) from error
    there.close()
    try:
        return _await(here, int(child.pid), start, time_limit_s, progress)
    except EOFError as error:
        child.join()
        raise InputError(
            "E_TRACE",
            "the process that follows the network's dependencies ended without an answer "
            f"(exit status {child.exitcode}).",
            mend="It may have run out of memory: try a smaller picture, or a machine with more.",
        ) from error
    finally:
        child.kill()
        child.join()
        here.close()


def _await(
    here: Connection, child: int, start: float, time_limit_s: float, progress: Progress
) -> bytes:
    """The child's answer; empty where it computes nothing for some time.

    A child that was forked beside threads may wait for ever for what one of them held.
    """
    spent, since = _computed(child), time.monotonic()
    while time.monotonic() - start < time_limit_s:
        progress("following the channels", int(time.monotonic() - start), None)
        if here.poll(_POLL_S):
            return here.recv_bytes()
        now = _computed(child)
        if now is None or now != spent:
            spent, since = now, time.monotonic()
        elif time.monotonic() - since > _IDLE_S:
            return b""
    raise InputError(
        "E_TIME",
        f"the network's dependencies were not found within {time_limit_s:g} s.",
        mend="Give it longer (inspect --prunable --time-limit, or time_limit_s of the pass in a "
        "recipe), or leave parts of it whole with --keep.",
    )


def _computed(process: int) -> tuple[str, ...] | None:
    """Processor time that a process has had, as Linux counts it; ``None`` where none tells."""
    try:
        told = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return tuple(told.rpartition(")")[2].split()[11:13])  # utime and stime, proc(5)


def _child(there: Connection, module: nn.Module, example: Arrays, keep: tuple[str, ...]) -> None:
    """Runs in the child: answers with JSON, whatever happens."""
    torch.set_num_threads(1)  # threads of the parent did not come along
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            held: dict[str, Any] = asdict(_structure(module, example, keep))
        except EdgepressError as error:
            held = {"error": error.message, "mend": error.mend}
        except Exception as error:  # of Torch-Pruning or the user's own forward: told, not raised
            first = str(error).strip().partition("\n")[0][:200]
            held = {
                "error": f"the network's channels cannot be followed: {type(error).__name__}: "
                f"{first}",
                "mend": "Torch-Pruning reads some networks only; those without gradients from "
                "output to input are not among them.",
            }
    there.send_bytes(json.dumps(held).encode())
    there.close()


def _structure(module: nn.Module, example: Arrays, keep: Sequence[str]) -> Structure:
    feeds = tensors_from(example)
    layers = layer_shapes(module, feeds)
    shared = _shared(module)
    links = dependency_chains(copy.deepcopy(module), feeds)
    reasons: dict[str, str] = {}
    candidates: list[Group] = []
    makers: dict[str, str] = {}
    order = {layer.module: number for number, layer in enumerate(layers) if layer.owns}
    for plain, obstacle in groups_of(links):
        group = _named(plain, order)
        makers |= {m.module: group.name for m in group.members if m.side == "out"}
        held = _held(group, keep)
        tied = next((shared[m.module] for m in group.members if m.module in shared), None)
        reason = obstacle
        if held is not None:
            reason = f"'{held}' is kept"
        elif tied is not None:
            reason = f"its weights are shared with '{tied}'"
        if reason is None:
            candidates.append(group)
        else:
            reasons[group.name] = reason
    modules = dict(modules_of(module))
    trials = CutVerifier(module, feeds)
    good, failed = verified_groups(trials, candidates, modules)
    heads = [g for g in _heads(module) if _held(g, keep) is None and not _in_any(g, good)]
    more, whole = verified_groups(trials, heads, modules)
    good += more
    reasons |= failed
    for group in (one for one in heads if one.name in whole):
        reason = f"its heads cannot leave: {whole[group.name]}"
        reasons |= {m.module: reason for m in group.members if m.side == "out"}
    cut = {member.module for group in good for member in group.members if member.side == "out"}
    refused: list[RefusedModule] = []
    for layer in layers:
        if layer.owns and layer.module not in cut:
            reason = reasons.get(layer.module) or reasons.get(makers.get(layer.module, ""))
            reason = reason or why_not(modules[layer.module], "out")
            reason = reason or _without_group(layer.module, links)
            refused.append(RefusedModule(layer.module, reason))
    blocks = [
        b for b in residual_blocks(module, feeds) if not any(_overlap(b.name, k) for k in keep)
    ]
    return Structure(tuple(good), tuple(blocks), tuple(layers), tuple(refused), _notes(module))


def _named(group: Group, order: Mapping[str, int]) -> Group:
    """The group by the name of the first layer that makes its channels."""
    makers = [m.module for m in group.members if m.side == "out" and m.module in order]
    name = min(makers, key=lambda maker: order[maker], default=group.name)
    return replace(group, name=name)


def _without_group(name: str, links: Sequence[DependencyChain]) -> str:
    """The reason against a layer whose channels are in no group."""
    told = [chain.obstacle for chain in links if chain.root == name and chain.obstacle]
    return told[0] if told else "nothing that can be cut depends on it"


def _held(group: Group, keep: Sequence[str]) -> str | None:
    """The kept name that a member of a group lies in."""
    for member in group.members:
        for name in keep:
            if ResidualBlock(name).holds(member.module):
                return name
    return None


def _overlap(block: str, kept: str) -> bool:
    return ResidualBlock(block).holds(kept) or ResidualBlock(kept).holds(block)


def _in_any(group: Group, others: Sequence[Group]) -> bool:
    taken = {(m.module, m.side) for other in others for m in other.members}
    return any((m.module, m.side) in taken for m in group.members)


def _shared(module: nn.Module) -> dict[str, str]:
    """Modules (and parameters) with a tensor that another one holds as well, and that one."""
    owners: dict[int, list[tuple[str, str]]] = {}
    for owner, part in modules_of(module):
        for name, tensor in own_parameters(part):
            owners.setdefault(id(tensor), []).append((owner, f"{owner}.{name}".strip(".")))
    found: dict[str, str] = {}
    for places in owners.values():
        for owner, tensor in places if len(places) > 1 else []:
            other = next((o for o, _ in places if o != owner), owner)
            found[owner] = found[tensor] = other
    return found


def _notes(module: nn.Module) -> tuple[str, ...]:
    frozen = [name for name, one in module.named_parameters() if not one.requires_grad]
    if not frozen:
        return ()
    return (
        f"{len(frozen)} parameters do not require gradients ({', '.join(frozen[:3])}"
        f"{', ...' if len(frozen) > 3 else ''}); they are cut like the others, --keep leaves "
        "modules whole.",
    )


def _heads(module: nn.Module) -> list[Group]:
    """The heads of attentions that are written as layers and a number of heads."""
    found: list[Group] = []
    for name, part in modules_of(module):
        count = next((a for a in _HEADS if type(getattr(part, a, None)) is int), None)
        inner = [(key, one) for key, one in modules_of(part) if key and "." not in key]
        linear = {key: one for key, one in inner if isinstance(one, nn.Linear)}
        sources = next((keys for keys in _ALL if all(key in linear for key in keys)), None)
        reader = next((key for key in _ALL_READ if key in linear), None)
        if count is None or sources is None or reader is None:
            continue
        heads, width = int(getattr(part, count)), linear[reader].in_features
        parts = 3 if len(sources) == 1 else 1
        if (
            heads < 2
            or width % heads
            or any(linear[k].out_features != width * parts for k in sources)
        ):
            continue
        inside = [f"{name}.{key}".strip(".") for key in (*sources, reader)]
        counts = [ChannelAttribute(name, count, heads)]
        counts += [
            ChannelAttribute(name, size, width, width // heads)
            for size in _SIZES
            if getattr(part, size, None) == width
        ]
        found.append(head_group(heads, width, inside[:-1], parts, inside[-1], counts))
    return found


def structure_from(held: Mapping[str, Any]) -> Structure:
    """A Structure from the JSON form of its fields."""
    return Structure(
        tuple(_group(one) for one in held["groups"]),
        tuple(ResidualBlock(**one) for one in held["blocks"]),
        tuple(
            LayerShape(**{key: _plain(value) for key, value in one.items()})
            for one in held["layers"]
        ),
        tuple(RefusedModule(**one) for one in held["refused"]),
        tuple(held["notes"]),
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _group(held: Mapping[str, Any]) -> Group:
    members = tuple(
        Member(m["module"], m["side"], m["width"], tuple(tuple(i) for i in m["indices"]))
        for m in held["members"]
    )
    counts = tuple(ChannelAttribute(**one) for one in held["counts"])
    return Group(
        held["name"], members, tuple(held["free"]), tuple(held["segments"]), counts, held["exact"]
    )
