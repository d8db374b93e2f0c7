"""Networks as torch modules, for `fcurr.models` to take apart."""

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet(nn.Module):
    """The residual network for small images of He et al. (2016), Deep residual learning, section 4.2.

    A 3 x 3 convolution, three stages of `blocks` blocks with 16, 32 and 64 channels, the mean over the image, a linear
    layer. The first block of the second and of the third stage halves the sides.
    """

    def __init__(self, *, planes: int, classes: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(planes, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        widths = [width for width in (16, 32, 64) for _ in range(blocks)]
        self.blocks = nn.Sequential(*(Block(into, out) for into, out in zip([16, *widths], widths, strict=False)))
        self.head = nn.Linear(64, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # He et al. (2015), Delving deep into rectifiers, equation 10
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))  # [batch, 64, height / 4, width / 4]
        return self.head(x.mean((-2, -1)))


class Block(nn.Module):
    """relu(x + two convolutions of x); where channels are added, x is thinned out and padded with zeros (option A)."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.grows = out - into
        self.first = nn.Conv2d(into, out, 3, stride=2 if self.grows else 1, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        change = F.relu(self.first_norm(self.first(x)))
        change = self.second_norm(self.second(change))
        if self.grows:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grows // 2, self.grows // 2))
        return F.relu(x + change)
