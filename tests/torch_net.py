"""The same net in PyTorch: what a user of PyTorch would train instead.

Two groups, overlapping pooling, a response norm that stays in its group; PyTorch's
own layers throughout. benchmarks/train_step.py compares the time of its train step.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class AlexNet(nn.Module):
  """Logits of float32 images [batch, 3, 224, 224], less their mean."""

  def __init__(self, stock_norm: bool = True):
    """With `stock_norm` the norm is PyTorch's; else sums that a compiler fuses."""
    super().__init__()
    self.conv1 = nn.Conv2d(3, 96, 11, 4)
    self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
    self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
    self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
    self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
    self.fc6 = nn.Linear(256 * 6 * 6, 4096)
    self.fc7 = nn.Linear(4096, 4096)
    self.fc8 = nn.Linear(4096, 1000)
    self._norm = _stock_norm if stock_norm else _fusible_norm
    for name, layer in self.named_children():
      nn.init.normal_(layer.weight, std=0.01)
      nn.init.constant_(layer.bias, 1.0 - (name in ('conv1', 'conv3', 'fc8')))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = F.pad(x, (0, 3, 0, 3))  # conv1's last window hangs over the edge.
    x = F.max_pool2d(self._norm(self.conv1(x).relu()), 3, 2)
    x = F.max_pool2d(self._norm(self.conv2(x).relu()), 3, 2)
    x = self.conv4(self.conv3(x).relu()).relu()
    x = F.max_pool2d(self.conv5(x).relu(), 3, 2).flatten(1)
    x = F.dropout(self.fc6(x).relu(), training=self.training)
    x = F.dropout(self.fc7(x).relu(), training=self.training)
    return self.fc8(x)


def _stock_norm(x):
  # It divides alpha by the size of the window.
  norm = lambda half: F.local_response_norm(half, 5, 5 * 1e-4, 0.75, 2.0)
  return torch.cat([norm(half) for half in x.chunk(2, 1)], 1)


def _fusible_norm(x):
  parts = []
  for half in x.chunk(2, 1):
    padded = F.pad(half.float().square(), (0, 0, 0, 0, 2, 2))
    sums = sum(padded[:, i : i + half.shape[1]] for i in range(5))
    root = torch.rsqrt(2.0 + 1e-4 * sums)
    parts.append(half * (root * root.sqrt()).to(half.dtype))
  return torch.cat(parts, 1)


def load(net: AlexNet, params: Mapping[str, Mapping[str, np.ndarray]]) -> None:
  """Gives the net the weights of a parameter tree of this project."""
  for name, layer in params.items():
    kernel = np.asarray(layer['kernel'])
    if name == 'fc6':  # Maps come first here, pixels there.
      kernel = kernel.reshape(6, 6, 256, -1).transpose(2, 0, 1, 3)
      kernel = kernel.reshape(9216, -1)
    kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
    own = getattr(net, name)
    own.weight.data.copy_(torch.tensor(kernel))
    own.bias.data.copy_(torch.tensor(np.asarray(layer['bias'])))
