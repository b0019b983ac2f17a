"""Training back: a student, cut or chosen, learns to give what its teacher gives."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ...benchmarks.data.images import Images
from ...benchmarks.tasks.task import Task
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.progress import Progress, silent
from ..recipe.settings import Distil
from .loop import Trained, Training
from .processes import Processes
from .setup import own_randomness

__all__ = ["Trained", "distil"]


def distil(
    student: nn.Module,
    teacher: nn.Module,
    images: Images,
    *,
    selection: Images,
    task: Task,
    settings: Distil | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    processes: Processes | None = None,
    report: Progress = silent,
) -> Trained:
    """Train a student to give what its teacher gives.

    What it does: minimizes the losses of :mod:`edgepress.compress.training.losses` between both on
    augmented pictures, averages the weights, and keeps the epoch that scores best on the selection
    pictures. When it is exact: never. When it refuses: see below. Source: Hinton, Vinyals, Dean,
    "Distilling the Knowledge in a Neural Network", 2015; Beyer et al., "Knowledge distillation: A
    good teacher is patient and consistent", 2022 (both networks see the same view of a picture, and
    a long schedule).

    The same arguments give the same student, to the rounding of the precision and the number of
    processes, whether the training was interrupted or not. Under ``torchrun`` the batch is shared
    out to the processes; each normalizes its own part.

    Args:
        student: What is trained, from the weights it has; it stays as it is, a copy is trained.
            Frozen parameters stay frozen.
        teacher: The original; run in evaluation mode. It stays as it is.
        images: Pictures to train on, labelled or not; tensors are taken as they are, pictures are
            augmented.
        selection: Pictures that the best epoch is chosen on.
        task: What the networks are for; it says how outputs are compared and the epoch is chosen.
        settings: By default those of :class:`~edgepress.compress.recipe.settings.Distil`.
        preprocessing: How a picture becomes a tensor.
        seed: Of order, augmentation and dropout.
        folder: Where checkpoints are kept, after every epoch and every minute; none without.
        resume: Go on from the folder's checkpoint, where there is one.
        processes: Which of several processes this is; by default ``torchrun``'s environment tells.
        report: Told how far the training is.

    Returns:
        The student of the best epoch, the log, and remarks.

    Raises:
        InputError: ``E_DATA`` for fewer than 16 pictures or samples that do not fit; ``E_FROZEN``
            where no parameter may be trained; ``E_STUDENT`` where outputs cannot be compared;
            ``E_TAP`` for taps that are not there; ``E_NAN`` for a teacher that gives no numbers;
            ``E_DIVERGED`` where the loss is no number any more: the message says where it began,
            and the last checkpoint stays; ``E_EXISTS`` for a folder with a training that did not
            end, without ``resume``; ``E_RESUME`` where it was begun with other arguments.
    """
    joined = processes or Processes.join()
    try:
        with own_randomness(joined.device, seed):
            training = Training(
                student,
                teacher,
                images,
                selection,
                task,
                settings or Distil(),
                preprocessing,
                seed,
                folder,
                joined,
                report,
            )
            return training.run(resume)
    finally:
        if processes is None:
            joined.leave()
