"""MobileNetV2 (Sandler et al., 2018) with the parameter names of torchvision, so that its weights load."""

import torch
from torch import nn

# Expansion factor, output channels, number of blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return convolution, batch normalization and ReLU6."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expansion by a 1x1 convolution, depthwise 3x3, linear 1x1 projection; a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        expand = [conv_bn(inputs, hidden)] if expansion != 1 else []
        depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        projection = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*expand, depthwise, *projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the block."""
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """The width-1.0 network for images [batch, 3, 224, 224] with ImageNet normalisation."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv_bn(3, 32, 3, 2)]
        channels = 32
        for expansion, outputs, count, stride in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(*blocks, conv_bn(channels, 1280))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of the 1000 ImageNet classes."""
        return self.classifier(torch.flatten(self.pool(self.features(image)), 1))
