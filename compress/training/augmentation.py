"""Augmentation of whole batches in torch: what changes a picture and not what it shows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F  # noqa: N812, the name that everyone reads

from ..recipe.settings import Distil

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Draws:
    """What chance decided for each picture of a batch, as tensors ``(N,)``.

    Drawn for the whole batch of a step, then cut into the parts of the processes, so that their
    number changes no picture, but for the first of a part where it is blended: its neighbour is the
    part's last.

    Attributes:
        flip: Whether it is mirrored.
        down: How far down it is shifted, -1 to 1 of the largest shift.
        right: How far to the right.
        zoom: How much of the area goes, 0 to 1 of the largest share.
        x: Where the rest is taken, -1 to 1 of what room there is.
        y: The same, vertically.
        colour: Changes of brightness, contrast and saturation, -1 to 1, ``(N, 3)``.
        blend: Whether it is blended with its neighbour in the part.
        share: How much of it stays then, 0.5 to 1.
    """

    flip: torch.Tensor
    down: torch.Tensor
    right: torch.Tensor
    zoom: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    colour: torch.Tensor
    blend: torch.Tensor
    share: torch.Tensor

    @staticmethod
    def of(settings: Distil, count: int, generator: torch.Generator) -> Draws:
        """Draw for ``count`` pictures."""

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator)

        flip = uniform(count) < (0.5 if settings.flip else 0.0)
        where = uniform(5, count) * 2 - 1
        colour = uniform(count, 3) * 2 - 1
        blend = uniform(count) < settings.mix
        share = 0.5 + 0.5 * uniform(count)
        zoom = uniform(count)
        return Draws(flip, where[0], where[1], zoom, where[2], where[3], colour, blend, share)

    def part(self, start: int, stop: int) -> Draws:
        """What was drawn for some of them."""
        return Draws(*(getattr(self, field.name)[start:stop] for field in fields(self)))

    def to(self, device: torch.device) -> Draws:
        """The same, on a device."""
        return Draws(*(getattr(self, field.name).to(device) for field in fields(self)))


def shifted(pictures: torch.Tensor, settings: Distil, draws: Draws) -> torch.Tensor:
    """Mirror and shift.

    Args:
        pictures: uint8 ``(N, H, W, C)``.
        settings: How far.
        draws: For these pictures.

    Returns:
        uint8 ``(N, H, W, C)``.
    """
    count, height, width, _ = pictures.shape
    down, right = round(settings.crop * height), round(settings.crop * width)
    if not (settings.flip or down or right):
        return pictures
    padded = F.pad(pictures, (0, 0, right, right, down, down)) if down or right else pictures
    here = pictures.device
    rows = torch.arange(height, device=here) + _start(draws.down, down)[:, None]
    straight = torch.arange(width, device=here).expand(count, width)
    columns = torch.where(draws.flip[:, None], width - 1 - straight, straight)
    columns = columns + _start(draws.right, right)[:, None]
    each = torch.arange(count, device=here)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]


def _start(drawn: torch.Tensor, largest: int) -> torch.Tensor:
    """Where the window begins in the padded picture: 0 to twice the largest shift."""
    return largest + (drawn * (largest + 0.5)).round().clamp(-largest, largest).long()


def recoloured(pictures: torch.Tensor, settings: Distil, draws: Draws) -> torch.Tensor:
    """Zoom into pictures and change their colours.

    Args:
        pictures: float32 ``(N, C, H, W)``, values 0 to 255.
        settings: How far.
        draws: For these pictures.

    Returns:
        float32 ``(N, C, H, W)``, values 0 to 255.
    """
    if settings.zoom:
        side = (1 - settings.zoom * draws.zoom).sqrt()
        shift = torch.stack([draws.x * (1 - side), draws.y * (1 - side)], 1)
        scale = torch.diag_embed(side[:, None].expand(-1, 2))
        theta = torch.cat([scale, shift[:, :, None]], 2)
        grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
        pictures = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    if settings.colour:
        brightness, contrast, saturation = (1 + settings.colour * draws.colour).T[..., None]
        pictures = pictures * brightness[..., None, None]
        mean = pictures.mean((1, 2, 3), keepdim=True)
        pictures = mean + (pictures - mean) * contrast[..., None, None]
        if pictures.shape[1] == 3:
            luma = torch.tensor(_LUMA, device=pictures.device)[None, :, None, None]
            grey = (pictures * luma).sum(1, keepdim=True)
            pictures = grey + (pictures - grey) * saturation[..., None, None]
        pictures = pictures.clamp(0, 255)
    return pictures


def mixed_up(pictures: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Blend some pictures with their neighbours: ``share`` of each stays.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018; as distillation data,
    Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022.

    Args:
        pictures: float32 ``(N, C, H, W)``.
        draws: For these pictures; nothing is done where none is to be blended.
    """
    if not bool(draws.blend.any()):
        return pictures
    kept = kept_share(draws)[:, None, None, None]
    return pictures * kept + pictures.roll(1, 0) * (1 - kept)


def kept_share(draws: Draws) -> torch.Tensor:
    """How much of each picture is itself, ``(N,)``; the rest is of the picture before it."""
    return torch.where(draws.blend, draws.share, torch.ones_like(draws.share))
