"""The parts of `benchmarks.gpu`: their commands, limits and data."""

import dataclasses

PHOTOGRAPHS, CIFAR10 = 'imagenette', 'cifar10'
CACHES, DTYPES = ('host', 'device', 'none'), ('bfloat16', 'float32')


@dataclasses.dataclass(frozen=True)
class Part:
  """One part.

  Attributes:
    words: the module and its flags.
    seconds: its time limit.
    quick: flags of --quick; later flags override earlier ones.
    dataset: name of the data set that it reads, if any.
    trains: whether it is a training, which has a work directory and no figures.
  """

  words: str
  seconds: int
  quick: str = '--quick'
  dataset: str = ''
  trains: bool = False


NARROW = (
  '--config.model.conv_features=(2,2,2,2,2) --config.model.fc_features=(2,2)'
)
SHORT = (
  f'{NARROW} --config.input.batch_size=8 --config.eval.batch_size=500'
  ' --config.train.epochs=0.02'
)
SMALL = {
  CIFAR10: ' --config.model.conv1_stride=2',
  PHOTOGRAPHS: ' --config.input.crop_size=67',
}
SWITCHES = 'benchmarks.switches --batch=1024'
BOTH = '--dtypes=bfloat16,float32'
# Photographs at full geometry: as many epochs as a minute allows, and a rate
# that falls to zero over them.
ON_PHOTOGRAPHS = (
  f'--config.input.dataset={PHOTOGRAPHS} --config.model.num_classes=10'
  ' --config.train.epochs=60 --config.train.eval_every_epochs=5'
  ' --config.optimizer.schedule=cosine --config.optimizer.drop_epochs=()'
)
TRAININGS = {  # Name of the config: flags, data set, seconds.
  'cifar10': ('', CIFAR10, 90),
  'fast': (
    # A quarter of its batch: 5,000 photographs would give 5 steps an epoch.
    f'{ON_PHOTOGRAPHS} --config.input.batch_size=256'
    ' --config.optimizer.learning_rate=0.014',
    PHOTOGRAPHS,
    120,
  ),
  'source': (ON_PHOTOGRAPHS, PHOTOGRAPHS, 120),
  'paper': (ON_PHOTOGRAPHS, PHOTOGRAPHS, 120),
}
SEEDS = {'': 0, '_seed1': 1, '_seed2': 2}  # As time allows.
PARTS = {
  'machine': Part('benchmarks.machine', 40),
  'numerics': Part('benchmarks.numerics --check', 90),
  **{
    f'train_step_{dtype}': Part(
      'benchmarks.train_step --parts=training --torch=compiled'
      f' --dtypes={dtype} --batches=128,1024 --rounds=3',
      130,
      '--quick --batches=2 --torch=none',
    )
    for dtype in DTYPES
  },
  'batches': Part(
    f'benchmarks.train_step --parts=training --torch=none {BOTH}'
    ' --batches=256,512,2048 --rounds=2',
    120,
    '--quick --batches=2 --dtypes=float32',
  ),
  'switches_bfloat16': Part(
    f'{SWITCHES} --dtype=bfloat16', 150, '--quick --only=feature_group_count'
  ),
  'switches_float32': Part(f'{SWITCHES} --dtype=float32', 150),
  'profile': Part('benchmarks.operations --batch=1024 --dtype=bfloat16', 60),
  'inference': Part(
    f'benchmarks.inference --torch=compiled {BOTH} --batches=1,128 --rounds=3',
    120,
    '--quick --torch=none',
  ),
  'input_pipeline': Part(
    f'benchmarks.input_pipeline --dataset={PHOTOGRAPHS} --rounds=2 --batches=8',
    90,
    dataset=PHOTOGRAPHS,
  ),
  **{
    f'end_to_end_{cache}': Part(
      'benchmarks.end_to_end --config=configs/fast.py'
      f' --config.input.dataset={PHOTOGRAPHS} --config.model.num_classes=10'
      f' --config.input.cache={cache} --rounds=3 --steps=20'
      ' --config.optimizer.learning_rate=0.001',
      60,
      f'--quick --steps=1 --config.input.batch_size=4 {NARROW}',
      PHOTOGRAPHS,
    )
    for cache in CACHES
  },
  **{
    name + suffix: Part(
      f'alexnet_jax.main --config=configs/{name}.py --config.seed={seed} {words}',
      seconds,
      SHORT + SMALL[dataset],
      dataset,
      trains=True,
    )
    for suffix, seed in SEEDS.items()
    for name, (words, dataset, seconds) in TRAININGS.items()
  },
}
