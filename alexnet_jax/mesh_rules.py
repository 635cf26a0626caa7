"""The rules for a config on several devices; `config.check` applies them."""

from collections.abc import Iterator

import ml_collections

from alexnet_jax import mesh as mesh_lib


def problems(
  config: ml_collections.ConfigDict, num_devices: int
) -> Iterator[str]:
  """Yields a line for each rule that the config breaks on so many devices."""
  mesh = config.mesh
  if mesh.layout not in mesh_lib.LAYOUTS:
    yield (
      f'config.mesh.layout={mesh.layout} is not a layout; use'
      f' {" or ".join(map(repr, mesh_lib.LAYOUTS))}'
    )
    return
  if mesh.towers not in ('1', '2', 'auto'):
    yield f"config.mesh.towers={mesh.towers} must be '1', '2' or 'auto'"
    return
  try:
    data, tower = mesh_lib.mesh_shape(
      mesh.layout, mesh.towers, num_devices, config.model.num_towers
    )
  except ValueError as error:
    yield str(error)
    return
  if tower == 2 and config.model.lrn_across_towers:
    yield (
      'config.model.lrn_across_towers=True needs both towers on one device; use'
      " config.mesh.layout='data'"
    )
  if config.model.num_classes % tower:
    yield (
      f'config.model.num_classes={config.model.num_classes} must be even on'
      " two towers; use config.mesh.towers='1'"
    )
  if mesh.layout == 'one_weird_trick' and num_devices > 1:
    yield from _one_weird_trick(config.model, num_devices)
  for section in ('input', 'eval'):
    size = config[section].batch_size
    if size > 0 and size % data:
      nearest = [n for n in (size // data * data, -(-size // data) * data) if n]
      yield (
        f'config.{section}.batch_size={size} must be a multiple of {data}, the'
        f" size of mesh axis 'data' with {num_devices} devices; try"
        f' {" or ".join(map(str, nearest))}'
      )


def _one_weird_trick(net, num_devices):
  remedy = "use config.mesh.layout='data'"
  if not net.tower_links:
    yield (
      "config.mesh.layout='one_weird_trick' splits fc6 and fc7 over all"
      f' devices, so it needs config.model.tower_links=True; {remedy}'
    )
  if any(isinstance(w, int) and w % num_devices for w in net.fc_features):
    yield (
      f'config.model.fc_features={net.fc_features} must be multiples of the'
      f" {num_devices} devices with config.mesh.layout='one_weird_trick';"
      f' {remedy}'
    )
