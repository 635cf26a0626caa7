"""Nets of others, written without this project: what conversions are held to.

torchvision's alexnet and a net of two groups in PyTorch; bvlc_alexnet in NumPy,
layer by layer as Caffe's documentation has them; and .caffemodel files, byte by
byte as the protocol buffer encoding has them. Widths are arguments, geometry is
full.
"""

import collections
import struct

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# (kernels of conv1 ... conv5, units of fc6 and fc7, classes)
NARROW = {
  1: ((8, 12, 16, 12, 8), (24, 20), 10),
  2: ((8, 12, 16, 12, 8), (24, 20), 10),
}
FULL = {
  1: ((64, 192, 384, 256, 256), (4096, 4096), 1000),
  2: ((96, 256, 384, 384, 256), (4096, 4096), 1000),
}
NAMES = [
  *[
    f'{layer}{kind}'
    for layer in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7')
    for kind in ('/linear', '')
  ],
  'fc8',
]
# Caffe's net: groups, padding and stride by layer.
GEOMETRY = {
  'conv1': (1, 0, 4),
  'conv2': (2, 2, 1),
  'conv3': (1, 1, 1),
  'conv4': (2, 1, 1),
  'conv5': (2, 1, 1),
}


class Torchvision(nn.Module):
  """torchvision.models.alexnet, with its names."""

  # Modules whose outputs are the activations `NAMES`.
  OUTPUTS = [
    *[f'features.{i}' for i in (0, 2, 3, 5, 6, 7, 8, 9, 10, 12)],
    *[f'classifier.{i}' for i in (1, 2, 4, 5, 6)],
  ]

  def __init__(self, widths):
    super().__init__()
    (a, b, c, d, e), (f, g), classes = widths
    self.features = nn.Sequential(
      nn.Conv2d(3, a, kernel_size=11, stride=4, padding=2),
      nn.ReLU(),
      nn.MaxPool2d(kernel_size=3, stride=2),
      nn.Conv2d(a, b, kernel_size=5, padding=2),
      nn.ReLU(),
      nn.MaxPool2d(kernel_size=3, stride=2),
      nn.Conv2d(b, c, kernel_size=3, padding=1),
      nn.ReLU(),
      nn.Conv2d(c, d, kernel_size=3, padding=1),
      nn.ReLU(),
      nn.Conv2d(d, e, kernel_size=3, padding=1),
      nn.ReLU(),
      nn.MaxPool2d(kernel_size=3, stride=2),
    )
    self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
    self.classifier = nn.Sequential(
      nn.Dropout(),
      nn.Linear(e * 36, f),
      nn.ReLU(),
      nn.Dropout(),
      nn.Linear(f, g),
      nn.ReLU(),
      nn.Linear(g, classes),
    )

  def forward(self, x):
    x = self.avgpool(self.features(x)).flatten(1)
    return self.classifier(x)


class TwoGroups(nn.Module):
  """bvlc_alexnet as its ports to PyTorch have it.

  The norm is Caffe's; with `k` and `alpha` of the paper and `across` False, its
  net on two GPUs.
  """

  def __init__(self, widths, k=1.0, alpha=1e-4, across=True, overhang=0):
    super().__init__()
    self.norm, self.across, self.overhang = (
      (5, alpha, 0.75, k),
      across,
      overhang,
    )
    convs, (f, g), classes = widths
    before = 3
    for (name, (groups, padding, stride)), width in zip(
      GEOMETRY.items(), convs, strict=True
    ):
      size = {'conv1': 11, 'conv2': 5}.get(name, 3)
      conv = nn.Conv2d(before, width, size, stride, padding, groups=groups)
      setattr(self, name, conv)
      before = width
    self.fc6 = nn.Linear(before * 36, f)
    self.fc7 = nn.Linear(f, g)
    self.fc8 = nn.Linear(g, classes)

  def _norm(self, x):
    parts = [x] if self.across else x.chunk(2, 1)
    return torch.cat([F.local_response_norm(p, *self.norm) for p in parts], 1)

  def activations(self, x):
    """The activations by name."""
    found = {}
    pool = lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)
    x = F.pad(x, (0, self.overhang, 0, self.overhang))
    for name in GEOMETRY:
      x = found[f'{name}/linear'] = getattr(self, name)(x)
      x = x.relu()
      x = self._norm(x) if name in ('conv1', 'conv2') else x
      x = found[name] = x if name in ('conv3', 'conv4') else pool(x)
    x = x.flatten(1)
    for name in ('fc6', 'fc7'):
      x = found[f'{name}/linear'] = getattr(self, name)(x)
      x = found[name] = x.relu()
    found['fc8'] = self.fc8(x)
    return found


def random_net(net, seed=0):
  """The net in eval mode, its weights such that signals keep their size."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for x in net.parameters():
      fan_in = x[0].numel() if x.ndim > 1 else 0
      std = (2 / fan_in) ** 0.5 if fan_in else 0.1
      x.copy_(torch.randn(x.shape, generator=generator) * std)
  return net.eval()


@torch.no_grad()
def torch_activations(net, inputs):
  """Activations [N, height, width, maps] or [N, units] by name, in float32."""
  x = torch.from_numpy(np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)))
  if isinstance(net, TwoGroups):
    found = net.activations(x)
  else:
    outputs = {}
    for module in Torchvision.OUTPUTS:
      net.get_submodule(module).register_forward_hook(
        lambda _, __, out, module=module: outputs.__setitem__(module, out)
      )
    net(x)
    found = dict(zip(NAMES, outputs.values(), strict=True))
  return {
    name: (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()
    for name, x in found.items()
  }


def centre(images, size):
  """The central crops of uint8 images, as float32."""
  start = (images.shape[1] - size) // 2
  return images[:, start : start + size, start : start + size].astype('float32')


def torchvision_inputs(images):
  """torchvision's preset: to [0, 1], then mean and deviation per channel."""
  x = centre(images, 224) / np.float32(255)
  mean = np.float32([0.485, 0.456, 0.406])
  return (x - mean) / np.float32([0.229, 0.224, 0.225])


# bvlc_alexnet in NumPy: blobs are [N, maps, height, width], weights as in Caffe.


def caffe_blobs(widths, seed=0):
  """Random (kernel, bias) by layer, with the shapes that Caffe has."""
  net = random_net(TwoGroups(widths), seed)
  state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
  return {
    name: (state[f'{name}.weight'], state[f'{name}.bias'])
    for name in [*GEOMETRY, 'fc6', 'fc7', 'fc8']
  }


def caffe_convolution(x, kernel, bias, groups, padding, stride):
  x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
  size, each = kernel.shape[2], x.shape[1] // groups
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
  windows = windows[:, :, ::stride, ::stride]
  outs = [
    np.einsum(
      'nchwij,ocij->nohw', windows[:, g * each :][:, :each], k, optimize=True
    )
    for g, k in enumerate(np.split(kernel, groups))
  ]
  return np.concatenate(outs, 1) + bias[None, :, None, None]


def caffe_pooling(x):
  """MAX, 3 x 3, stride 2; the size is rounded up, windows are clipped."""
  side = -(-(x.shape[2] - 3) // 2) + 1
  out = np.empty((*x.shape[:2], side, side), x.dtype)
  for i in range(side):
    for j in range(side):
      window = x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
      out[:, :, i, j] = window.max((2, 3))
  return out


def caffe_norm(x):
  """LRN across all maps: local_size 5, alpha 1e-4, beta 0.75, k 1."""
  scale = np.ones_like(x)
  for i in range(x.shape[1]):
    near = x[:, max(i - 2, 0) : i + 3]
    scale[:, i] += 1e-4 / 5 * (near**2).sum(1)
  return x * scale**-0.75


def caffe_activations(blobs, images, mean):
  """Activations by name in float64, of uint8 RGB images.

  Args:
    blobs: weights, from `caffe_blobs`.
    images: uint8 RGB images.
    mean: mean in B, G, R: three numbers, or [3, size, size].
  """
  x = images[..., ::-1].transpose(0, 3, 1, 2).astype(np.float64)
  x = x - np.asarray(mean, np.float64).reshape(3, *np.shape(mean)[1:] or (1, 1))
  start = (x.shape[2] - 227) // 2
  x = x[:, :, start : start + 227, start : start + 227]
  found = {}
  for name, geometry in GEOMETRY.items():
    kernel, bias = (np.float64(b) for b in blobs[name])
    x = found[f'{name}/linear'] = caffe_convolution(x, kernel, bias, *geometry)
    x = np.maximum(x, 0)
    x = caffe_norm(x) if name in ('conv1', 'conv2') else x
    x = found[name] = x if name in ('conv3', 'conv4') else caffe_pooling(x)
  x = x.reshape(len(x), -1)
  for name in ('fc6', 'fc7', 'fc8'):
    kernel, bias = (np.float64(b) for b in blobs[name])
    x = x @ kernel.T + bias
    found[name if name == 'fc8' else f'{name}/linear'] = x
    x = np.maximum(x, 0)
    found.setdefault(name, x)
  return {
    k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in found.items()
  }


# Protocol buffers. https://protobuf.dev/programming-guides/encoding


def varint(value):
  value %= 1 << 64
  out = bytearray()
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  return bytes([*out, value])


def number(field, value):
  return varint(field << 3) + varint(value)


def chunk(field, content):
  content = content.encode() if isinstance(content, str) else content
  return varint(field << 3 | 2) + varint(len(content)) + content


def single(field, value):
  return varint(field << 3 | 5) + struct.pack('<f', value)


def blob(array, legacy=False, shape=None):
  """A BlobProto; older ones always have four axes."""
  shape = array.shape if shape is None else shape
  if legacy:
    shape = (1,) * (4 - len(shape)) + tuple(shape)
    head = b''.join(number(i + 1, size) for i, size in enumerate(shape))
  else:
    head = chunk(7, chunk(1, b''.join(map(varint, shape))))
  return head + chunk(5, array.astype('<f4').tobytes())


# In both encodings: fields of name, type and blobs; the type's name or number.
ENCODINGS = {
  'layer': (100, 1, 2, 7, {'Convolution': 106, 'LRN': 118, 'Pooling': 121}),
  'layers': (2, 4, 5, 6, {'Convolution': 10, 'LRN': 18, 'Pooling': 19}),
}
V1_TYPES = {
  'Data': 5,
  'Convolution': 4,
  'ReLU': 18,
  'LRN': 15,
  'Pooling': 17,
  'InnerProduct': 14,
  'Dropout': 6,
  'SoftmaxWithLoss': 21,
}


def layer(encoding, name, kind, blobs=(), param=b''):
  outer, name_field, type_field, blob_field, params = ENCODINGS[encoding]
  content = chunk(name_field, name)
  if encoding == 'layers':
    content += number(type_field, V1_TYPES[kind])
  else:
    content += chunk(type_field, kind)
  for x in blobs:
    content += chunk(blob_field, blob(x, legacy=encoding == 'layers'))
  if param:
    content += chunk(params[kind], param)
  return chunk(outer, content)


NORM = number(1, 5) + single(2, 1e-4) + single(3, 0.75)
POOL = number(1, 0) + number(2, 3) + number(3, 2)


def caffemodel(
  blobs, encoding='layer', name='AlexNet', norm=NORM, swap=False, more=b''
):
  """The bytes of a .caffemodel file of bvlc_alexnet.

  With `swap` pooling precedes the norm, as in CaffeNet. Convolutions have the
  settings `more` besides their own.
  """
  net = [chunk(1, name), layer(encoding, 'data', 'Data')]
  for conv, (groups, padding, stride) in GEOMETRY.items():
    size = blobs[conv][0].shape[2]
    param = number(3, padding) + number(4, size)
    param += number(5, groups) + number(6, stride) + more
    net.append(layer(encoding, conv, 'Convolution', blobs[conv], param))
    net.append(layer(encoding, f'relu{conv[-1]}', 'ReLU'))
    after = []
    if conv in ('conv1', 'conv2'):
      after.append(layer(encoding, f'norm{conv[-1]}', 'LRN', param=norm))
    if conv in ('conv1', 'conv2', 'conv5'):
      after.append(layer(encoding, f'pool{conv[-1]}', 'Pooling', param=POOL))
    net += after[::-1] if swap else after
  for fc in ('fc6', 'fc7', 'fc8'):
    net.append(layer(encoding, fc, 'InnerProduct', blobs[fc]))
    net.append(layer(encoding, f'drop_{fc}', 'Dropout'))
  net.append(layer(encoding, 'loss', 'SoftmaxWithLoss'))
  return b''.join(net)


def state_dict(net):
  """A copy of the state dict, in its order."""
  return collections.OrderedDict(
    (k, v.detach().clone()) for k, v in net.state_dict().items()
  )
