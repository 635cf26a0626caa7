"""The train step in PyTorch, with the paper's update rule as its SGD has it."""

import torch
from torch.nn import functional as F

from benchmarks import synthetic
from tests import torch_net


class Variant:
  """A train step, or the net at test, on random images ready for the net."""

  def __init__(
    self,
    batch_size: int,
    *,
    train: bool = True,
    compiled: str | None = None,
    channels_last: bool = False,
    bfloat16: bool = False,
  ):
    """`compiled` is a mode of torch.compile; `bfloat16` is autocast."""
    self._device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as XLA.
    torch.backends.cudnn.benchmark = True  # XLA picks its algorithms, too.
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    net = torch_net.AlexNet(stock_norm=compiled is None)
    net.train(train).to(self._device, memory_format=layout)
    images = torch.randn(batch_size, 3, 224, 224) * 64
    self._images = images.to(self._device, memory_format=layout)
    self._labels = torch.randint(1000, (batch_size,)).to(self._device)
    self._optimizer = torch.optim.SGD(
      net.parameters(),
      synthetic.RATE,
      synthetic.MOMENTUM,
      weight_decay=synthetic.WEIGHT_DECAY,
      fused=True,
    )
    self._train, self._bfloat16 = train, bfloat16
    self._net = torch.compile(net, mode=compiled) if compiled else net

  def __call__(self, steps: int = 1) -> None:
    """Does the work, and waits until it is done."""
    for _ in range(steps):
      if self._train:
        self._optimizer.zero_grad()
        F.cross_entropy(self._logits(), self._labels).backward()
        self._optimizer.step()
      else:
        with torch.inference_mode():
          self._logits()
    if self._device == 'cuda':
      torch.cuda.synchronize()

  def _logits(self):
    with torch.autocast(self._device, torch.bfloat16, self._bfloat16):
      return self._net(self._images).float()
