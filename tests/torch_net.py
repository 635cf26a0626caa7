"""The same net in PyTorch: what a user of PyTorch would train instead.

Two groups, overlapping pooling, a response norm that stays in its group; PyTorch's
own layers throughout, and the update rule as its SGD has it. benchmarks/train_step.py
compares the time of this train step with ours.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from alexnet_jax import model

RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
PAPERS_WIDTHS = 96, 256, 384, 384, 256, 4096, 4096, 1000


class AlexNet(nn.Module):
  """Logits of float32 images [batch, 3, 224, 224], less their mean."""

  def __init__(
    self, stock_norm: bool = True, widths: Sequence[int] = PAPERS_WIDTHS
  ):
    """With `stock_norm` the norm is PyTorch's; else sums that a compiler fuses."""
    super().__init__()
    w1, w2, w3, w4, w5, w6, w7, w8 = widths
    self.conv1 = nn.Conv2d(3, w1, 11, 4)
    self.conv2 = nn.Conv2d(w1, w2, 5, padding=2, groups=2)
    self.conv3 = nn.Conv2d(w2, w3, 3, padding=1)
    self.conv4 = nn.Conv2d(w3, w4, 3, padding=1, groups=2)
    self.conv5 = nn.Conv2d(w4, w5, 3, padding=1, groups=2)
    self.fc6 = nn.Linear(w5 * 6 * 6, w6)
    self.fc7 = nn.Linear(w6, w7)
    self.fc8 = nn.Linear(w7, w8)
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
      rows = kernel.reshape(36, -1, kernel.shape[1])
      kernel = rows.swapaxes(0, 1).reshape(kernel.shape)
    kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
    own = getattr(net, name)
    own.weight.data.copy_(torch.tensor(kernel))
    own.bias.data.copy_(torch.tensor(np.asarray(layer['bias'])))


def logits_difference() -> float:
  """Largest difference of both nets' logits, over their standard deviation."""
  # In the paper the net at test multiplies by a half what PyTorch's has doubled.
  net = model.AlexNet(inverted_dropout=True)
  images = np.random.default_rng(0).normal(0, 64, (2, 224, 224, 3))
  images = images.astype(np.float32)
  params = jax.jit(net.init)(jax.random.key(0), images)['params']
  with jax.default_matmul_precision('highest'):  # No TF32, as PyTorch on CPU.
    ours = jax.jit(net.apply)({'params': params}, images)
  other = AlexNet().eval()
  load(other, params)
  with torch.inference_mode():
    theirs = other(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
  return float(np.abs(theirs - ours).max() / np.std(theirs))


def classifier(
  params: Mapping[str, Mapping[str, np.ndarray]],
  crops: np.ndarray,
  compiled: str | None = None,
  channels_last: bool = False,
  bfloat16: bool = False,
) -> Callable[[], np.ndarray]:
  """Computes the logits of float32 crops [batch, 224, 224, 3] at every call.

  `compiled` is a mode of torch.compile; `bfloat16` is autocast.
  """
  widths = [layer['bias'].size for _, layer in sorted(params.items())]
  net = AlexNet(stock_norm=compiled is None, widths=widths)
  load(net, params)
  device, layout = _set_up(channels_last)
  net.eval().to(device, memory_format=layout)
  images = torch.tensor(crops).permute(0, 3, 1, 2)
  images = images.to(device).contiguous(memory_format=layout)
  call = torch.compile(net, mode=compiled) if compiled else net

  def logits():
    with (
      torch.inference_mode(),
      torch.autocast(device, torch.bfloat16, bfloat16),
    ):
      return call(images).float().cpu().numpy()

  return logits


def _set_up(channels_last):
  """The device, and the layout of images; settings as XLA's."""
  torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as XLA.
  torch.backends.cudnn.benchmark = True  # XLA picks its algorithms, too.
  layout = torch.channels_last if channels_last else torch.contiguous_format
  return 'cuda' if torch.cuda.is_available() else 'cpu', layout


class TrainStep:
  """A train step on random images that are ready for the net."""

  def __init__(
    self,
    batch_size: int,
    *,
    compiled: str | None = None,
    channels_last: bool = False,
    bfloat16: bool = False,
  ):
    """`compiled` is a mode of torch.compile; `bfloat16` is autocast."""
    self._device, layout = _set_up(channels_last)
    torch.manual_seed(0)
    net = AlexNet(stock_norm=compiled is None)
    net.train().to(self._device, memory_format=layout)
    images = torch.randn(batch_size, 3, 224, 224) * 64
    self._images = images.to(self._device, memory_format=layout)
    self._labels = torch.randint(1000, (batch_size,)).to(self._device)
    self._optimizer = torch.optim.SGD(
      net.parameters(), RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
    )
    self._bfloat16 = bfloat16
    self._net = torch.compile(net, mode=compiled) if compiled else net

  def __call__(self, steps: int = 1) -> None:
    """Does the work, and waits until it is done."""
    for _ in range(steps):
      self._optimizer.zero_grad()
      with torch.autocast(self._device, torch.bfloat16, self._bfloat16):
        logits = self._net(self._images).float()
      F.cross_entropy(logits, self._labels).backward()
      self._optimizer.step()
    if self._device == 'cuda':
      torch.cuda.synchronize()
