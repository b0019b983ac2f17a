"""A small BatchNorm residual network for 28 x 28 grey pictures (Fashion-MNIST).

The network follows the basic block of He et al., "Deep Residual Learning for Image Recognition"
(2015, https://arxiv.org/abs/1512.03385), cut down to three stages of one block each.

How to use it, with this folder as the working directory:

    from safetensors.torch import load_file
    from backbone import fashion_resnet

    model = fashion_resnet().eval()
    model.load_state_dict(load_file("weights/fashion_resnet.safetensors"))
"""

from __future__ import annotations

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, ReLU after the sum (He et al. 2015, figure 2).

    The shortcut is the identity where the shapes agree, and otherwise a strided 1 x 1
    convolution with BatchNorm (option B of the paper).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block.

        Args:
            x: Features of shape (N, in_channels, H, W).

        Returns:
            Features of shape (N, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class FashionResNet(nn.Module):
    """A residual network of seven 3 x 3 convolutions for grey pictures of 28 x 28 pixels.

    Shapes and multiply-accumulates (MACs) for one picture; convolutions and the linear layer
    are counted, BatchNorm, ReLU, sums and the mean are not:

        part     output shape    MACs
        stem     (32, 28, 28)       225,792
        stage1   (32, 28, 28)    14,450,688
        stage2   (64, 14, 14)    11,239,424
        stage3   (128, 7, 7)     11,239,424
        mean     (128,)                   0
        head     (10,)                1,280
        total                    37,156,608

    It has 308,074 trainable parameters.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.stage1 = BasicBlock(32, 32)
        self.stage2 = BasicBlock(32, 64, stride=2)
        self.stage3 = BasicBlock(64, 128, stride=2)
        self.head = nn.Linear(128, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the class scores.

        Args:
            x: Preprocessed pictures of shape (N, 1, 28, 28).

        Returns:
            Logits of shape (N, num_classes).
        """
        x = self.stem(x)
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean(dim=(2, 3)))


def fashion_resnet() -> FashionResNet:
    """Builds the untrained demo backbone.

    Input (N, 1, 28, 28), output (N, 10), 37,156,608 MACs a picture. The architecture is
    described in He et al. 2015 (https://arxiv.org/abs/1512.03385); see `FashionResNet`.

    Returns:
        The network with fresh random weights, in training mode.
    """
    return FashionResNet()
