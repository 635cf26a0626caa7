"""StableHLO: a net as one program of JAX, with its weights inside.

`jax.export` compiles it for the device on which it is called. It needs JAX, but
not this project: `jax.export.deserialize(content).call(images)`. JAX reads such
files for six months after the version that has written them, and three weeks
before it; a .safetensors file can always be exported again.
"""

import os
import pathlib

import jax
import jax.export
import jax.numpy as jnp

from alexnet_jax import augment
from alexnet_jax import model
from alexnet_jax import weights as weights_lib
from alexnet_jax.runtime import files

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(
  weights: weights_lib.Weights, path: str | os.PathLike, crops: bool = False
) -> None:
  """Writes the program of `build`, serialized."""
  content = build(weights, crops).serialize()
  files.write_bytes(pathlib.Path(path), bytes(content))


def build(
  weights: weights_lib.Weights, crops: bool = False
) -> jax.export.Exported:
  """A net for `PLATFORMS`, and batches of any size.

  It takes `images`, uint8 [batch, size, size, 3] RGB, with `size`
  config.input.image_size, as preparation stores them, and takes their centre;
  it returns probabilities, float32 [batch, classes].

  Args:
    weights: the net.
    crops: build the bare net, from crops, float32 [batch, crop, crop, 3] as
      `augment.view_at` returns them, to logits, float32 [batch, classes].
  """
  inputs, net = weights.config.input, model.AlexNet(**weights.config.model)
  sizes = inputs.image_size, inputs.crop_size
  (offset,) = augment.view_offsets(*sizes, many=False, flip=False)

  params, mean_image = jax.device_put((weights.params, weights.subtracted))

  def bare_net(crops):
    return net.apply({'params': params}, crops)

  def classifier(images):
    crops = augment.view_at(
      images,
      mean_image,
      jnp.asarray(offset),
      inputs.crop_size,
      channel_stds=inputs.channel_stds,
    )
    return jax.nn.softmax(bare_net(crops))

  size, dtype = (sizes[1], jnp.float32) if crops else (sizes[0], jnp.uint8)
  shape = jax.export.symbolic_shape(f'batch, {size}, {size}, 3')
  function = jax.jit(bare_net if crops else classifier)
  exported = jax.export.export(function, platforms=PLATFORMS)
  return exported(jax.ShapeDtypeStruct(shape, dtype))
