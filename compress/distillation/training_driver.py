"""How the pipeline trains a network: by distillation here, or in the user's own loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...runtime.errors import InputError
from ...runtime.pictures.preprocessing import Preprocessing
from ...runtime.progress import Progress
from ..recipe.settings import Distil
from ..source.data_and_task import DataAndTask
from ..training.checkpoint_file import FILE
from ..training.processes import Processes
from ..training.train import Trained, distil
from .user_finetune import Finetune, run_finetune


@dataclass(frozen=True)
class TrainingDriver:
    """How a training goes, whatever it trains.

    Attributes:
        settings: Of the pass that trains.
        finetune: The user's own training, which takes the place of ours.
        folder: Where checkpoints are kept.
        resume: Whether to go on from there.
        seed: Of everything random.
    """

    settings: Distil
    finetune: Finetune | None
    folder: Path
    resume: bool
    seed: int

    def check_begun(self, *others: str) -> None:
        """See, before any work, that no training that did not end would be overwritten.

        Args:
            others: Names of what its folder holds, beside the checkpoint, that tells of one.

        Raises:
            InputError: ``E_EXISTS`` where there is one, and nobody asked to go on with it.
        """
        if self.resume or self.finetune is not None:
            return
        if any((self.folder / name).exists() for name in (FILE, *others)):
            raise InputError(
                "E_EXISTS",
                f"there is a training in '{self.folder}' that did not end.",
                mend="Go on with --resume, or remove that folder to start anew.",
                path=str(self.folder),
            )

    def train(
        self,
        student: nn.Module,
        teacher: nn.Module,
        data_and_task: DataAndTask,
        preprocessing: Preprocessing | None,
        progress: Progress,
        processes: Processes | None = None,
    ) -> Trained:
        """Train a student to give what its teacher gives; both stay as they are.

        Args:
            student: What learns.
            teacher: The original.
            data_and_task: Pictures and task.
            preprocessing: From pictures to the networks' inputs.
            progress: Told how far the work is.
            processes: Who trains; by default ``torchrun``'s environment tells.

        Raises:
            InputError: As :func:`~edgepress.compress.training.train.distil` and
                :func:`~edgepress.compress.distillation.user_finetune.run_finetune`.
        """
        if self.finetune is not None:
            progress("your own training", 0, None)
            module = run_finetune(self.finetune, student, teacher)
            return Trained(module, {"trained_by": "the user's own loop"}, ())
        split = data_and_task.split
        assert split.training is not None
        return distil(
            student,
            teacher,
            split.training,
            selection=split.selection,
            task=data_and_task.task,
            settings=self.settings,
            preprocessing=preprocessing,
            seed=self.seed,
            folder=self.folder,
            resume=self.resume,
            processes=processes,
            report=progress,
        )
