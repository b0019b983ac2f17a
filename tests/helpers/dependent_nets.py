"""Small networks whose channels depend on each other in the ways that backbones know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class Plain(nn.Module):
    """Convolutions, BatchNorm, PReLU, a flatten and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.act, self.second = nn.PReLU(12), nn.Conv2d(12, 10, 3, stride=2)
        self.head = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.second(self.act(self.norm(self.first(x)))))
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Squeeze(nn.Module):
    """Squeeze-and-excite on a depthwise convolution, a transposed convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.grow = nn.Conv2d(16, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.depthwise(functional.relu6(self.norm(self.expand(x)))))
        x = x * self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(functional.relu(self.grow(self.project(x))).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution with GroupNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.norm, self.third = nn.GroupNorm(4, 32), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.second(functional.relu(self.first(x)))))
        return self.head(functional.relu(self.third(x)).mean((2, 3)))


class ChannelsFirst(nn.LayerNorm):
    """Over the channels of a map ``(N, C, H, W)``, as timm's ConvNeXt does it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Next(nn.Module):
    """A block of ConvNeXt between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.each, self.norm = nn.Conv2d(24, 24, 7, padding=3, groups=24), ChannelsFirst(24)
        self.up, self.down = nn.Conv2d(24, 96, 1), nn.Conv2d(96, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.down(functional.gelu(self.up(self.norm(self.each(x)))))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches put one behind the other and added to a third."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right, self.both = (
            nn.Conv2d(8, 12, 1),
            nn.Conv2d(8, 20, 1),
            nn.Conv2d(8, 32, 1),
        )
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        joined = torch.cat([self.left(x), self.right(x)], 1) + self.both(x)
        return self.head(functional.relu(joined).mean((2, 3)))


class Padded(nn.Module):
    """Residual blocks, and a shortcut that pads its channels with zeros by a fixed number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block, self.wide = Residual(8), nn.Conv2d(8, 16, 3, padding=1)
        self.last, self.head = Residual(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(functional.relu(self.stem(x)))
        x = functional.relu(self.wide(x) + functional.pad(x, (0, 0, 0, 0, 4, 4)))
        return self.head(self.last(x).mean((2, 3)))


class Neighbours(nn.Module):
    """Responses normalized over neighbouring channels, as in AlexNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.local_response_norm(functional.relu(self.stem(x)), 5, alpha=0.5)
        return self.head(functional.relu(self.body(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm1 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.two, self.norm2 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.norm2(self.two(functional.relu(self.norm1(self.one(x))))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, tokens, self.num_heads * self.head_dim))


class Sized(Attention):
    """As timm writes it: the channels of all heads are a number of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.attn_dim = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, tokens, self.attn_dim))


class Stiff(Attention):
    """Its channels are those of its input, whatever the heads are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, tokens, width))


class Encoder(nn.Module):
    """Patches, and torch's own attention over them and over a few tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.own = nn.MultiheadAttention(32, 4, batch_first=True)
        self.tokens = nn.Parameter(torch.randn(1, 3, 32))
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.own(x, x, x, need_weights=False)[0]
        asked = self.tokens.expand(x.shape[0], -1, -1)
        return self.head(self.cross(asked, key=x, value=x, need_weights=False)[0].mean(1))


class Fixed(nn.Module):
    """A norm that remembers its width as a number of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.shape = (width,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.shape, self.weight, self.bias)


class Normed(nn.Module):
    """A convolution before such a norm, and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), Fixed(12)
        self.last, self.head = nn.Conv2d(12, 16, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(functional.relu(self.last(x)).mean((2, 3)))


class Preactivated(nn.Module):
    """A residual block that begins in place: what it passes on has gone through its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 12, 3, padding=1), Started(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Started(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.relu, self.one = nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x) + self.one(x)


class Transformer(nn.Module):
    """Patches, a class token, positions, one block of attention and a multilayer perceptron."""

    def __init__(self, attention: Callable[[int, int], nn.Module] = Attention) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.position = nn.Parameter(torch.randn(1, 5, 32) * 0.1)
        self.token = nn.Parameter(torch.randn(1, 1, 32) * 0.1)
        self.norm1, self.attention = nn.LayerNorm(32), attention(32, 4)
        self.norm2, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


class Pyramid(nn.Module):
    """Nested outputs, a head that two levels share, and channels that are an output themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.side, self.top = nn.Conv2d(16, 8, 1), nn.Conv2d(24, 8, 1)
        self.shared, self.score = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        low = functional.relu(self.low(x))
        high = functional.max_pool2d(functional.relu(self.high(low)), 2)
        levels = [
            self.score(functional.relu(self.shared(p))) for p in (self.side(low), self.top(high))
        ]
        return {"levels": levels, "rest": (high.mean((2, 3)), levels[0].argmax(1))}


class Shuffled(nn.Module):
    """A channel shuffle, whose halves its forward takes apart by number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.piece = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = functional.relu(self.first(x)).chunk(2, 1)
        x = torch.cat([left, functional.relu(self.piece(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(functional.relu(self.last(x)).mean((2, 3)))


def shuffled(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.size()
    return torch.transpose(x.view(n, 2, c // 2, h, w), 1, 2).contiguous().view(n, c, h, w)


class Doubling(nn.Module):
    """Of ShuffleNet v2: both halves see all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.each = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)
        self.too = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return shuffled(torch.cat((self.one(self.each(x)), self.other(self.too(x))), 1))


class Unit(nn.Module):
    """Of ShuffleNet v2: one half of the channels passes, the other is worked on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.narrow, self.grow = nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 1)
        self.each = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = torch.chunk(x, 2, dim=1)
        other = functional.relu(self.grow(self.each(functional.relu(self.narrow(other)))))
        return shuffled(torch.cat((one, other), 1))


class ShuffledTwice(nn.Module):
    """Shuffles behind each other, where Torch-Pruning 1.6 divides by zero."""

    plain = 2

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.units = nn.Sequential(Doubling(8), *(Unit(16) for _ in range(self.plain)))
        self.last, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.last(self.units(functional.relu(self.stem(x)))))
        return self.head(functional.avg_pool2d(x, x.shape[-1]).view(x.size(0), -1))


class ShuffledOften(ShuffledTwice):
    """More of them, where it looks for channels that are not there."""

    plain = 3


class ConvolvedAttention(nn.Module):
    """Attention over the places of a map, its heads taken apart and joined by reshapes alone."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.width = heads, channels // heads
        self.key = self.width // 2
        self.qkv = nn.Conv2d(channels, channels + 2 * self.key * heads, 1)
        self.places = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        parts = self.qkv(x).view(n, self.heads, 2 * self.key + self.width, h * w)
        q, k, v = parts.split([self.key, self.key, self.width], 2)
        seen = (q.transpose(-2, -1) @ k).softmax(-1)
        x = (v @ seen.transpose(-2, -1)).view(n, c, h, w) + self.places(v.reshape(n, c, h, w))
        return self.out(x)


class Detecting(nn.Module):
    """Half of the channels through attention, then boxes and classes of two maps in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1)
        self.attention, self.after = ConvolvedAttention(16), nn.Conv2d(32, 16, 1)
        self.boxes = nn.ModuleList([nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 1)])
        self.classes = nn.ModuleList([nn.Conv2d(32, 5, 1), nn.Conv2d(16, 5, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = torch.relu(self.stem(x))
        one, two = torch.relu(self.down(large)).split((16, 16), 1)
        small = self.after(torch.cat((one, two + self.attention(two)), 1))
        heads = zip((large, small), self.boxes, self.classes, strict=True)
        flat = [torch.cat((box(y), kind(y)), 1).flatten(2) for y, box, kind in heads]
        boxes, kinds = torch.cat(flat, 2).split((16, 5), 1)
        n, _, places = boxes.shape
        return torch.cat((boxes.view(n, 4, 4, places).softmax(2).sum(2), kinds.sigmoid()), 1)
