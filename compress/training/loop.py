"""The training of a student to its teacher's outputs: its steps, its epochs, the best of them."""

from __future__ import annotations

import copy
import math
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...benchmarks.data.images import Images
from ...benchmarks.tasks.task import Task
from ...export.calibration.malloc_retention import malloc_retained
from ...export.graph.torch_capture import input_names
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.progress import Progress
from ..recipe.settings import Distil
from ..source.finite_checks import not_finite
from . import torch_compile
from .augmentation import Draws
from .autocast_layout import ComputeMode, choose_compute_mode, compute_modes
from .checkpoint_file import CheckpointFolder, digest, match_layouts
from .checkpointing import Checkpointer, TrainingState
from .distillation_loss import TappedNetwork, TappedOutputs, TensorsByName
from .divergence import divergence_error, spoilt_weights_error
from .epoch_scoring import EpochScorer
from .learning_rate import TrainingClock, learning_rate
from .processes import Processes
from .setup import frozen_remarks, mixed_seed, picture_count_remarks, prepare_training
from .training_batches import TrainingBatch, TrainingSamples

_DDP_REMARKS = ("Grad strides do not match", "find_unused_parameters=True was specified")
_torch: Any = torch  # where torch's own annotations do not say what is given


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
        module: The student of the best epoch, in evaluation mode, on the CPU; what was handed over
            is as it was.
        log: Settings, figures of every epoch, the way it was computed; JSON values only.
        notes: Remarks for people.
    """

    module: nn.Module
    log: dict[str, Any]
    notes: tuple[str, ...]


class Training:
    """One training; :func:`~edgepress.compress.training.train.distil` describes the arguments."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        images: Images,
        selection: Images,
        task: Task,
        settings: Distil,
        preprocessing: Preprocessing | None,
        seed: int,
        folder: Path | None,
        processes: Processes,
        report: Progress,
    ) -> None:
        self._settings, self._seed, self._report = settings, seed, report
        self._processes, self._device = processes, processes.device
        self._trainable = {name: one.requires_grad for name, one in student.named_parameters()}
        self._notes = [*picture_count_remarks(len(images)), *frozen_remarks(student)]
        specs = images.specs(input_names(student))
        self._pool = TrainingSamples(images, specs, preprocessing, settings, self._device, report)
        world = processes.world
        self._batch = max(world, min(settings.batch, len(images)) // world * world)
        self._steps = len(images) // self._batch
        feeds = ComputeMode().fed(self._example_step().feeds)
        self._networks = prepare_training(
            student, teacher, feeds, images.labelled, task, settings, processes
        )
        self._lr = self._networks.steps.lr
        self._referee = EpochScorer(task, selection, specs, preprocessing, self._networks.teacher)
        if self._referee.task.name != task.name:
            self._notes.append(
                f"the best epoch was chosen by {self._referee.task.name} with the original, since "
                f"{task.name} judges other samples than the selection pictures."
            )
        self._clock = TrainingClock(self._steps * settings.epochs, 60 * settings.max_minutes)
        identity = {
            "settings": asdict(settings),
            "seed": seed,
            "student": digest(student),
            "teacher": digest(teacher),
            "pictures": len(images),
            "selection": len(selection),
            "task": task.name,
        }
        held = None if folder is None else CheckpointFolder(folder, identity)
        self._keeper = Checkpointer(held, self._networks, self._clock, processes)
        self._state = TrainingState()

    def run(self, resume: bool) -> Trained:
        """Train to the end.

        Args:
            resume: Whether to go on from the folder's checkpoint, where there is one.
        """
        with ExitStack() as stack:
            stack.callback(self._pool.close)
            stack.enter_context(malloc_retained())
            stack.enter_context(warnings.catch_warnings())
            found = self._keeper.take_up(resume)
            if found is None:
                self._measure_ways()
            else:
                self._state = found
            self._tell_device()
            networks, way = self._networks, self._state.way
            for network in (networks.student, networks.teacher, networks.average.network):
                way.placed(network)
            match_layouts(networks.optimizer)
            self._clock.start()
            self._try_compiler()
            trained = self._distributed()
            self._clock.prepared()
            while self._clock.progress < 1 and self._left():
                self._train_epoch(trained)
            return self._result()

    @property
    def device_name(self) -> str:
        """What trains here: a GPU's name, or ``CPU``."""
        device = self._device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

    def _tell_device(self) -> None:
        """Name what trains, beside what has trained before an interruption."""
        devices = self._state.devices
        if self._clock.progress < 1 and self.device_name not in devices:
            devices.append(self.device_name)

    def _try_compiler(self) -> None:
        """Leave the networks compiled where it is allowed, long enough, and quicker."""
        settings, state, clock = self._settings, self._state, self._clock
        if settings.compiled == "no" or settings.taps or self._processes.world > 1:
            return  # a compiled network does not show what is inside, nor is it tried with DDP
        left_s = (clock.total - clock.done) * state.took.get(str(state.way), 0.0)
        if clock.limit_s:
            left_s = min(left_s, clock.limit_s - clock.spent_s)
        if settings.compiled == "auto" and left_s < torch_compile.WORTH_S:
            return
        if not torch_compile.compiler_at_hand(self._device):
            state.compiled = "no: there is no C++ compiler"
            return
        step = self._example_step()
        networks = self._networks

        def once() -> None:
            _sum(self._terms(networks.watched, step, state.way)).backward()

        self._report("compiling", 0, None)
        tried = torch_compile.compile_if_quicker(networks.student, networks.teacher, once)
        state.took[str(state.way)] = tried.plain_s
        if tried.compiled_s is not None:
            state.took[f"{state.way}, compiled"] = tried.compiled_s
        state.compiled = f"no: {tried.why_not}" if tried.why_not else "yes"

    def _example_step(self) -> TrainingBatch:
        count = self._batch // self._processes.world
        return self._chosen(torch.arange(count), self._chance(0, 0))

    def _measure_ways(self) -> None:
        step = self._example_step()

        def settle(way: ComputeMode) -> None:
            way.placed(self._networks.teacher)

        def once(module: nn.Module, way: ComputeMode) -> None:
            _sum(self._terms(module, step, way)).backward()

        self._report("trying precisions and layouts", 0, None)
        ways = compute_modes(self._settings, self._networks.watched)
        way, self._state.took = choose_compute_mode(ways, self._networks.watched, settle, once)
        self._state.way = ComputeMode(**self._processes.share(way.to_dict()))

    def _distributed(self) -> nn.Module:
        watched = self._networks.watched
        if self._processes.world == 1:
            return watched
        for remark in _DDP_REMARKS:
            warnings.filterwarnings("ignore", message=remark)
        return nn.parallel.DistributedDataParallel(watched, find_unused_parameters=True)

    def _train_epoch(self, trained: nn.Module) -> None:
        """From where the epoch stands to its end, or to the end of the time; then it is judged."""
        state, settings = self._state, self._settings
        order = torch.randperm(len(self._pool), generator=self._chance(state.epoch, 0))
        while state.step < self._steps:
            left = self._left()
            if not left:
                break
            for group in self._networks.optimizer.param_groups:
                share = learning_rate(self._clock.progress, settings.warmup)
                group["lr"] = self._lr * group["rate"] * share
            self._one_step(trained, order)
            state.step += 1
            self._clock.stepped(left)
            self._report("training", self._clock.done, self._clock.done + left - 1)
            due = self._keeper.due and state.step < self._steps  # in the first process alone
            if due and not_finite(self._networks.student) is None:
                self._keeper.write(state)
        self._check_weights()
        if self._processes.first:
            self._judge()
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        self._clock.judged(self._steps)
        self._keeper.write(state)

    def _check_weights(self) -> None:
        """See that what is kept now can be gone on from; every process calls it.

        A finite loss may have a gradient that is not; the loss of the next step would show it.
        """
        bad = not_finite(self._networks.student)
        if not self._processes.all_true(bad is None):
            where = f"epoch {self._state.epoch + 1}, step {max(1, self._state.step)}"
            raise spoilt_weights_error(where, bad, self._keeper.told)

    def _one_step(self, trained: nn.Module, order: torch.Tensor) -> None:
        state, networks = self._state, self._networks
        at = state.step * self._batch
        rows, coming = order[at : at + self._batch], order[at + self._batch : at + 2 * self._batch]
        step = self._chosen(rows, self._chance(state.epoch, state.step + 1), coming)
        _torch.manual_seed(mixed_seed(self._seed, state.epoch, state.step, self._processes.rank))
        networks.student.train()
        terms = self._terms(trained, step, state.way)
        loss = _sum(terms)
        if not self._processes.all_true(math.isfinite(loss.item())):
            torch_compile.undo_compile(
                networks.student, networks.teacher
            )  # hooks are not seen in compiled code
            raise divergence_error(
                f"epoch {state.epoch + 1}, step {state.step + 1}",
                terms,
                networks.student,
                networks.teacher,
                state.way.fed(step.feeds),
                self._keeper.told,
            )
        networks.optimizer.zero_grad()
        loss.backward()
        networks.optimizer.step()
        networks.average.update(self._clock.done)
        for name, value in terms.items():
            state.sums[name] = state.sums.get(name, 0.0) + value.item()

    def _chosen(
        self, rows: torch.Tensor, chance: torch.Generator, coming: torch.Tensor | None = None
    ) -> TrainingBatch:
        """This process's part of a step's samples, the chance being drawn for all of them."""
        draws = Draws.of(self._settings, len(rows), chance)
        start, stop = self._processes.part(len(rows))
        ahead = None if coming is None or len(coming) < len(rows) else coming[start:stop]
        return self._pool.batch(rows[start:stop], draws.part(start, stop), ahead)

    def _terms(self, trained: nn.Module, step: TrainingBatch, way: ComputeMode) -> TensorsByName:
        feeds = way.fed(step.feeds)
        with way.computing(self._device):
            theirs = TappedOutputs({}, {})
            if self._networks.objective.asks_teacher:
                with torch.no_grad():
                    theirs = TappedOutputs(*self._networks.model(feeds))
            ours = TappedOutputs(*trained(feeds))
        inner: Any = trained if isinstance(trained, TappedNetwork) else trained.module
        return self._networks.objective(ours, theirs, inner.features, step.labels, step.draws)

    def _left(self) -> int:
        left = self._clock.left()
        return int(self._processes.share(left)) if self._clock.limit_s else left

    def _chance(self, epoch: int, step: int) -> torch.Generator:
        """The same numbers for the same place in the training, whatever came before."""
        return torch.Generator().manual_seed(mixed_seed(self._seed, epoch, step, -1))

    def _judge(self) -> None:
        """Score the averaged student, and keep it where it is the best so far."""
        state, network = self._state, self._networks.average.network
        self._report("scoring the selection pictures", 0, None)
        steps = max(1, state.step)
        row: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "steps": self._clock.done,
            "progress": round(self._clock.progress, 4),
            "loss": {name: round(total / steps, 6) for name, total in state.sums.items()},
            "selection": self._referee.score(network),
            "seconds": round(self._clock.spent_s, 1),
        }
        state.epochs.append(row)
        if state.best is None or row["selection"] >= state.best["selection"]:
            state.best = row
            held: TensorsByName = network.state_dict()
            self._keeper.best = {name: one.cpu().clone() for name, one in held.items()}

    def _result(self) -> Trained:
        module = ComputeMode().placed(copy.deepcopy(self._networks.average.network).cpu())
        if self._processes.first:
            module.load_state_dict(self._keeper.best)
        self._processes.copy_first(list(module.state_dict().values()))
        for name, one in module.named_parameters():
            one.requires_grad_(self._trainable[name])
        state, clock = self._state, self._clock
        if clock.limit_s and clock.done < clock.total:
            self._notes.append(
                f"{self._settings.max_minutes:g} minutes allowed {clock.done} of {clock.total} "
                f"steps, {clock.done / self._steps:.1f} epochs of {self._settings.epochs}."
            )
        log = {
            "pictures": len(self._pool),
            "batch": self._batch,
            "optimizer": self._networks.steps.optimizer,
            "lr": self._lr,
            "processes": self._processes.world,
            "devices": state.devices,
            "way": str(state.way),
            "compiled": state.compiled,
            "seconds_a_step": {name: round(value, 4) for name, value in state.took.items()},
            "chosen_by": self._referee.task.name,
            "best": state.best,
            "epochs": state.epochs,
            "seconds": round(clock.spent_s, 1),
        }
        return Trained(module.eval(), log, tuple(self._notes))


def _sum(terms: TensorsByName) -> Any:
    return torch.stack(list(terms.values())).sum()
