r"""Writes the activations of a layer for many images into one .npy file.

    python -m alexnet_jax.features --workdir=RUN --output=FILE.npy PATH...

FILE.npy is float32 [images, ...]; FILE.npy.json beside it has the names of the
images, in the same order. `python -m alexnet_jax.retrieve` can search in it.
"""

from collections.abc import Iterator, Sequence
import os
import pathlib

from alexnet_jax.runtime import command

if __name__ == '__main__':
  command.import_jax()

from absl import flags
from jaxtyping import Float, UInt8
import numpy as np

from alexnet_jax import feature_file
from alexnet_jax import image_files
from alexnet_jax import net as net_lib
from alexnet_jax import net_flags

PIXELS = 'pixels'  # A layer before the first: the stored images themselves.


def compute(
  net: net_lib.Net, images: UInt8[np.ndarray, 'images size size 3'], layer: str
) -> Float[np.ndarray, 'images *features']:
  """The features of stored images; `PIXELS` is a layer, too."""
  if layer == PIXELS:
    return images.astype(np.float32)
  return net.features(images, layer)


def class_of(item: image_files.Item) -> str:
  """The class of an image, or else the name of its folder."""
  return item.class_name or pathlib.PurePath(item.name).parent.name


def write_with_flags(
  values: net_flags.Values,
  words: Sequence[str],
  layer: str,
  flag: str,
  path: str | os.PathLike,
  dtype: type,
  net: net_lib.Net | None = None,
) -> int:
  """Writes the features of images to `path`; see `feature_file`.

  Args:
    values: values of the flags of `net_flags.define`.
    words: the images, see `image_files.find`.
    layer: name of the layer.
    flag: name of the flag that holds `path`.
    path: the .npy file.
    dtype: of the file.
    net: the net that `values` name, if it is open already.

  Returns:
    The exit code: 1 if an image could not be read, otherwise 0.

  Raises:
    ValueError: if a flag cannot be used, no image could be read, or `dtype`
      cannot hold the values.
    FileNotFoundError: if there is no net, no data set, or no such image.
  """
  output = net_flags.check_output(path, flag, ('.npy',))
  net = net or net_flags.open_net(values)
  if layer not in (PIXELS, *net.layer_names):
    raise ValueError(
      f'--layer={layer} is no layer of this net; it has'
      f' {", ".join(net.layer_names)}; {PIXELS} are the images'
    )
  data_dir = net_flags.data_dir(values)
  sources = image_files.find(words, data_dir, net.class_names)
  about = {
    'net': feature_file.digest(net.weights),
    'net_path': os.path.abspath(net_flags.path(values)),
    'checkpoint': values['checkpoint'],
    'layer': layer,
    'data_dir': os.path.abspath(os.path.expanduser(data_dir)),
    'folder': os.getcwd(),
    'names': [],
    'classes': [],
    'rows': [],
  }
  rows = _rows(net, sources, layer, about, dtype)
  count = feature_file.write(output, rows, about)
  size = output.stat().st_size / 1e6
  print(f'{path}: {count:,} images, layer {layer}, {size:,.1f} MB')
  return int(count < sum(map(len, sources)))


def _rows(net, sources, layer, about, dtype) -> Iterator[np.ndarray]:
  """Yields features by batch, and adds the images to the lists of `about`."""
  for items, images in image_files.batches(sources, net.stored):
    with np.errstate(over='ignore'):
      found = compute(net, images, layer).astype(dtype)
    bad = ~np.isfinite(found).reshape(len(found), -1).all(1)
    if bad.any():
      raise ValueError(
        f'layer {layer} of {items[bad.argmax()].name} has values that'
        f' {np.dtype(dtype)} cannot hold; choose a later layer'
      )
    about['names'] += [item.name for item in items]
    about['classes'] += [class_of(item) for item in items]
    about['rows'] += [item.row for item in items]
    yield found


def main(argv) -> int:
  with command.one_line_errors('nothing was written; repeat the command'):
    return write_with_flags(
      {flag.name: flag.value for flag in NET},
      argv[1:],
      LAYER.value,
      '--output',
      OUTPUT.value,
      np.float32,
    )


if __name__ == '__main__':
  LAYER = flags.DEFINE_string(
    'layer', 'fc7', 'Layer: conv1, fc7, fc7/linear (before the activation) ...'
  )
  OUTPUT = flags.DEFINE_string(
    'output', None, 'The file to write, FILE.npy.', required=True
  )
  NET = net_flags.define()
  command.run(main, takes_words=True)
