r"""The picture of the README: conv1's kernels, and images with predictions.

    python -m experiments.front_picture --weights=cifar10 --output=FILE.png \
      PATH...

or --workdir=RUN. PATH is as for `alexnet_jax.predict`, such as
'cifar10/validation[1:5]'; the first four images are shown, with their three most
probable classes. Above them are the kernels of conv1, as in Figure 3: those of
the first tower in the first row, those of the second in the second.
"""

from collections.abc import Sequence
import dataclasses

from absl import flags
from PIL import Image

from alexnet_jax import image_files
from alexnet_jax import net as net_lib
from alexnet_jax import net_flags
from alexnet_jax import pictures
from alexnet_jax import predict
from alexnet_jax import report
from alexnet_jax import sheet
from alexnet_jax.runtime import command

IMAGES, CLASSES = 4, 3
MARGIN = 12  # Pixels.


def draw(
  net: net_lib.Net, sources: Sequence[Sequence[image_files.Item]]
) -> Image.Image:
  """The kernels of a net above images with its predictions.

  Args:
    net: a net with two towers.
    sources: images, as from `image_files.find`; the first `IMAGES` are shown.

  Raises:
    ValueError: if no image could be read.
  """
  shown = []

  def keep(made: report.Prediction) -> None:
    if len(shown) < IMAGES:
      picture = report.picture(made, {})
      shown.append(
        dataclasses.replace(picture, caption='', bars=picture.bars[:CLASSES])
      )

  predict.predict(net, sources, 'one', keep, predict.Pictures({}))
  images = sheet.of_predictions(shown)
  kernels = net.params['conv1']['kernel']
  side = kernels.shape[0]
  columns = min(kernels.shape[-1] // 2, pictures.KERNEL_COLUMNS)
  zoom = max(1, ((images.width - 2 * MARGIN) // columns - 1) // side)
  grid = Image.fromarray(pictures.kernel_grid(kernels, zoom))
  whole = Image.new(
    'RGB', (images.width, MARGIN + grid.height + images.height), 'white'
  )
  whole.paste(grid, ((whole.width - grid.width) // 2, MARGIN))
  whole.paste(images, (0, MARGIN + grid.height))
  return whole


def main(argv: Sequence[str]) -> None:
  with command.one_line_errors('repeat the command'):
    output = net_flags.check_output(OUTPUT.value, '--output', sheet.SUFFIXES)
    values = {flag.name: flag.value for flag in NET}
    if not argv[1:]:
      raise ValueError('name a PATH: a picture, a folder, or DATASET/SPLIT')
    net = net_flags.open_net(values)
    sources = image_files.find(
      argv[1:], net_flags.data_dir(values), net.class_names
    )
    sheet.save(draw(net, sources), output)


if __name__ == '__main__':
  OUTPUT = flags.DEFINE_string(
    'output', None, 'FILE.png to write.', required=True
  )
  NET = net_flags.define()
  command.run(main, takes_words=True)
