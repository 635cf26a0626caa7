"""A trained net, to use: predictions and features of any images.

    import alexnet_jax
    net = alexnet_jax.load('runs/quickstart')
    net.predict(['digit.png'])

It runs on one device. `trained_net` evaluates a whole split on all of them.
"""

from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import functools
import itertools
import os

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import ml_collections
import numpy as np

from alexnet_jax import augment
from alexnet_jax import dataset as dataset_lib
from alexnet_jax import evaluator
from alexnet_jax import images as images_lib
from alexnet_jax import model
from alexnet_jax import shipped_nets
from alexnet_jax import trained_net
from alexnet_jax import weights as weights_lib
from alexnet_jax.runtime import files

BATCH_SIZE = 32
VIEWS = ('one', 'many')


class Net:
  """A net with its weights, class names and preprocessing.

  Methods take `images`: paths, Pillow images, and uint8 RGB arrays [height,
  width, 3] of any size, or one array uint8 [images, height, width, 3]. Each is
  resized and cropped as in preparation, then cropped, and the mean subtracted,
  as in evaluation.

  Attributes:
    weights: all that the net was made from.
  """

  def __init__(self, weights: weights_lib.Weights):
    self.weights = weights
    self._network = model.AlexNet(**weights.config.model)
    self._steps = {}  # Compiled steps, by the names of their activations.

  @property
  def config(self) -> ml_collections.ConfigDict:
    """The config of the net, with the keys of configs/paper.py."""
    return self.weights.config

  @property
  def params(self) -> dict[str, dict[str, np.ndarray]]:
    """The parameters, see `weights.Weights`."""
    return self.weights.params

  @property
  def class_names(self) -> tuple[str, ...]:
    """One name per label."""
    return self.weights.class_names

  @functools.cached_property
  def layer_names(self) -> tuple[str, ...]:
    """The names that `features` takes, from the first layer to the last."""
    size = self.config.input.crop_size
    captured = {}

    def apply(params, crops):
      self._network.apply({'params': params}, crops, capture=captured)

    crops = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    jax.eval_shape(apply, self.params, crops)
    return tuple(captured)

  def predict(
    self,
    images: Iterable[images_lib.AnyImage],
    *,
    views: str = 'one',
    top: int = 5,
  ) -> list[list[tuple[str, float]]]:
    """The most probable classes of each image, best first.

    Args:
      images: see `Net`.
      views: 'one' for the central crop, 'many' for the average over ten crops
        (five if the net was trained without reflections; section 4.1).
      top: number of classes per image; all classes if there are fewer.

    Returns:
      For each image a list of (class name, probability in 0..1).

    Raises:
      ValueError: if `views` or `top` is none of these, or an image cannot be
        read.
      FileNotFoundError: if there is no such file.
      TypeError: if `images` are no such images.
    """
    if top < 1:
      raise ValueError(f'top={top} must be positive')
    probabilities = self.probabilities(images, views=views)
    best = np.argsort(-probabilities, axis=1, kind='stable')[:, :top]
    return [
      [(self.class_names[label], float(row[label])) for label in labels]
      for row, labels in zip(probabilities, best, strict=True)
    ]

  def probabilities(
    self, images: Iterable[images_lib.AnyImage], *, views: str = 'one'
  ) -> Float[np.ndarray, 'images classes']:
    """The probability of each class, in the order of `class_names`.

    Arguments and errors are those of `predict`.
    """
    if views not in VIEWS:
      raise ValueError(f'views={views!r} must be one of {", ".join(VIEWS)}')
    found = [
      np.exp(log_probs)
      for log_probs, _ in self._outputs(images, many=views == 'many')
    ]
    empty = np.zeros((0, len(self.class_names)), np.float32)
    return np.concatenate([empty, *found])

  def features(
    self, images: Iterable[images_lib.AnyImage], layer: str = 'fc7'
  ) -> Float[np.ndarray, 'images *features']:
    """Activations of a layer for the central crop of each image.

    Args:
      images: see `Net`.
      layer: one of `layer_names`. 'conv1' is the output after activation, norm
        and pooling, 'fc7' after the activation and before dropout's factor,
        'fc7/linear' before the activation, 'fc8' the logits.

    Returns:
      float32 [images, features], or [images, height, width, features].

    Raises:
      ValueError: if there is no such layer, or an image cannot be read.
      FileNotFoundError: if there is no such file.
      TypeError: if `images` are no such images.
    """
    if layer not in self.layer_names:
      raise ValueError(
        f'layer={layer!r} is no layer of this net; it has'
        f' {", ".join(self.layer_names)}'
      )
    found = [
      activations[layer][0].astype(np.float32)
      for _, activations in self._outputs(images, layers=(layer,))
    ]
    if not found:
      raise ValueError('there are no images')
    return np.concatenate(found)

  def stored(
    self, image: images_lib.AnyImage
  ) -> UInt8[np.ndarray, 'size size 3']:
    """An image as preparation stores it, with config.input.image_size pixels.

    Raises:
      ValueError: if it cannot be read.
      FileNotFoundError: if there is no such file.
      TypeError: if it is neither a path, a Pillow image, nor such an array.
    """
    return images_lib.read_pixels(image, self.config.input.image_size)

  def _outputs(
    self,
    images: Iterable[images_lib.AnyImage],
    *,
    many: bool = False,
    layers: Sequence[str] = (),
  ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields log-probabilities and activations, `BATCH_SIZE` images at a time."""
    inputs = self.config.input
    offsets = augment.view_offsets(
      inputs.image_size,
      inputs.crop_size,
      many=many,
      flip=self.config.augment.flip,
    )
    step = self._step(tuple(layers))
    for batch in self._batches(images):
      count = len(batch)
      # With powers of two, few shapes are compiled.
      padded = 1 << (count - 1).bit_length()
      batch = np.concatenate([batch, np.repeat(batch[-1:], padded - count, 0)])
      outputs = step(self._device_params, batch, self._mean_image, offsets)
      log_probs, activations = jax.device_get(outputs)
      yield (
        log_probs[:count],
        {name: x[:, :count] for name, x in activations.items()},
      )

  def _batches(self, images):
    if isinstance(images, str | os.PathLike) or not hasattr(images, '__iter__'):
      raise TypeError(
        f'images is one {type(images).__name__}; pass a list: [image]'
      )
    if isinstance(images, np.ndarray) and images.ndim != 4:
      raise TypeError(
        f'images is an array of shape {list(images.shape)}; pass a list of'
        ' arrays [height, width, 3], or one array [images, height, width, 3]'
      )
    with concurrent.futures.ThreadPoolExecutor() as pool:
      images = iter(images)
      while batch := list(itertools.islice(images, BATCH_SIZE)):
        yield np.stack(list(pool.map(self.stored, batch)))

  @functools.cached_property
  def _device_params(self):
    return jax.device_put(self.params, jax.local_devices()[0])

  @functools.cached_property
  def _mean_image(self):
    return jnp.asarray(self.weights.subtracted)

  def _step(self, layers):
    if layers not in self._steps:
      self._steps[layers] = evaluator.make_predict_step(
        self._network,
        None,
        self.config.input.crop_size,
        self.config.augment.central_mean,
        layers,
        self.config.input.channel_stds,
      )
    return self._steps[layers]


def load(
  path: str | os.PathLike,
  *,
  checkpoint: str = 'best',
  data_dir: str | os.PathLike | None = None,
) -> Net:
  """A trained net, to use.

  Args:
    path: work directory of a training run, a .safetensors file that `python -m
      alexnet_jax.convert` has written, or the name of a net that comes with the
      package, see `shipped_nets`. A path of that name is preferred.
    checkpoint: 'best' (lowest validation error) or 'latest', of a work
      directory.
    data_dir: folder of the prepared data sets, which has the mean image and the
      class names of a work directory; None for config.input.data_dir. A file
      needs no data set.

  Raises:
    FileNotFoundError: if there is nothing there, or no data set.
    ValueError: if it is damaged or not of this project.
  """
  return Net(open_weights(path, checkpoint=checkpoint, data_dir=data_dir))


def open_weights(
  path: str | os.PathLike,
  *,
  checkpoint: str = 'best',
  data_dir: str | os.PathLike | None = None,
) -> weights_lib.Weights:
  """The weights of a net; arguments and errors are those of `load`."""
  more = shipped_nets.nor_a_net(path)
  path = files.local_path(shipped_nets.find(path), 'path')
  if not path.exists():
    raise FileNotFoundError(f'there is no work directory or file {path}{more}')
  if not path.is_dir():
    return weights_lib.load(path)
  config = trained_net.read_config(path, data_dir=data_dir and str(data_dir))
  on_one_device = config.copy_and_resolve_references()
  with on_one_device.unlocked():
    on_one_device.mesh.layout = 'data'  # It has both towers.
    on_one_device.input.cache = 'none'
  trained = trained_net.open_net(
    path, checkpoint, config=on_one_device, devices=jax.local_devices()[:1]
  )
  with config.unlocked():  # The weights may go to others, without our paths.
    config.input.data_dir = dataset_lib.DATA_DIR
    config.train.init_from = ''
  return weights_lib.Weights(
    jax.device_get(trained.params),
    config,
    trained.class_names,
    None if config.input.channel_means else trained.run.dataset.mean_image,
    {'source': f'step {trained.step} of a run on {config.input.dataset}'},
  )
