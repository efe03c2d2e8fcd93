"""A small vision transformer whose feed-forward layers take any activation.

Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, arXiv 2010.11929; pre-norm blocks, mean of the
patches instead of a class token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


class Attention(nn.Module):
    """Self-attention with several heads, [N, patches, width] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        _, patches, width = x.shape
        # [3, N, heads, patches, width / heads]
        query, key, value = self.qkv(x).reshape(-1, patches, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5, dim=-1)
        return self.out((weights @ value).transpose(1, 2).reshape(-1, patches, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, activation: Activation, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.feed_forward(x)


class ViT(nn.Module):
    """Patches, position, blocks, norm, mean over patches, linear.

    Args:
        activation: makes a new activation; called once per feed-forward layer.
        classes: size of the output.
        side: height and width of the images.
        patch: height and width of a patch; divides side.

    Shapes: image [N, 3, side, side] to logits [N, classes].
    """

    def __init__(
        self,
        activation: Activation,
        classes: int,
        *,
        side: int = 32,
        patch: int = 4,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(activation, width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)  # [N, patches, width]
        return self.head(self.blocks(x + self.position).mean(1))
