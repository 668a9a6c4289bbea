"""The residual network that train_fashion_resnet.py trains: about 0.66 million parameters."""

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: the identity, or a 1x1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rectified sum of the residual branch and the shortcut."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FashionResNet(nn.Module):
    """Stem of 32 channels at 28x28, two blocks of 64 at 14x14, two of 128 at 7x7, pooling, classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.stage1 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1))
        self.stage2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of images [batch, 1, 28, 28] whose pixels are in [0, 1]."""
        x = functional.relu(self.bn(self.stem(image)))
        x = self.stage2(self.stage1(x))
        return self.fc(torch.flatten(self.pool(x), 1))
