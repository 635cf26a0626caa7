"""Odd paths, names and environments, from preparation to evaluation.

In every world of worlds.py the commands prepare a data set, train two steps,
resume for two more, and evaluate. Each command must either give what it gives in
the plain world, bit by bit, and write only what is its own; or end with one
message of at most three lines and leave every file as it was, and it is then
repeated with plain paths and variables. A training that succeeds but cannot be
resumed or evaluated is a fault. A failure prints its world; to run that one
again, or other worlds:

    pytest -n0 -m '' 'tests/fuzz_test.py::test_paths[17]'
    FUZZ_SEED=1 FUZZ_WORLDS=1000 pytest -m slow tests/fuzz_test.py
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
import unicodedata
from unittest import mock

from absl import logging as absl_logging
from absl.testing import flagsaver
import numpy as np
from PIL import Image
import pytest

from alexnet_jax import main
from alexnet_jax.prepare import prepare
from benchmarks.faults import runs
from tests import worlds

pytestmark = [
  # ml_collections loads the config file with the deprecated load_module().
  pytest.mark.filterwarnings('ignore::DeprecationWarning'),
  # Orbax's threads, after an error.
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]

SEED = int(os.environ.get('FUZZ_SEED', 0))
NUM_WORLDS = int(os.environ.get('FUZZ_WORLDS', 200))
ROOT = pathlib.Path(main.__file__).parents[1]
CONFIG = """
from configs import quickstart

def get_config():
  config = quickstart.get_config()
  config.model.num_classes = 3
  config.model.conv_features = (4, 0, 0, 0, 4)
  config.model.fc_features = (0, 4)
  config.model.conv1_kernel = 3
  config.model.conv1_stride = 1
  config.input.eval_split = 'validation'
  config.input.image_size = 24
  config.input.crop_size = 20
  config.input.batch_size = 4
  config.mesh.layout = 'data'
  config.optimizer.drop_epochs = ()
  config.train.log_every_steps = 1
  config.train.eval_every_epochs = 1.0
  config.eval.batch_size = 4
  return config
"""
STAGES = ('prepare', 'train', 'resume', 'evaluate')
# How the lines of a log, of its table and of a warning begin.
LOG = ('I1', 'I0', 'W1', 'W0', 'E1', 'E0', '+--', '| ', 'Total: ')


class Fault(Exception):
  """A command neither works nor says why."""


@dataclasses.dataclass
class Ended:
  """A command that has ended: its exit code and what it printed."""

  code: int
  printed: str


@dataclasses.dataclass
class Place:
  """The folder of a world, and how commands run in it.

  Attributes:
    world: the world.
    root: the folder.
    run: `run_here` or `run_process`.
    base: variables of the plain environment.
    plain: the plain place, with a prepared data set; None for itself.
  """

  world: worlds.World
  root: str
  run: object
  base: dict
  plain: 'Place | None' = None

  def __post_init__(self):
    self.cwd = f'{self.root}/{self.world.cwd}'
    given = self.world.given.items()
    self.given = {key: v.replace('{root}', self.root) for key, v in given}
    for folder in (self.cwd, f'{self.root}/home', f'{self.root}/tmp'):
      os.makedirs(folder)
    config = self.path(self.given['config'])
    os.makedirs(config, exist_ok=True)
    with open(f'{config}/{worlds.CONFIG_FILE}', 'w') as file:
      file.write(CONFIG)
    write_images(self.path(self.given['source']), self.world)
    self.environment(True)  # Creates a broken module.
    if self.world.closed:
      self.closed = self.path(self.given[self.world.closed])
      os.makedirs(self.closed, exist_ok=True)
      os.chmod(self.closed, 0)

  def path(self, given):
    """The absolute path that the command line means."""
    first, slash, rest = given.partition('/')
    given = f'{self.root}/home/{rest}' if first == '~' else given
    return os.path.normpath(os.path.join(self.cwd, given))

  def environment(self, is_odd):
    """Variables by name; the odd ones, or the plain ones."""
    env = {'HOME': f'{self.root}/home', 'TMPDIR': f'{self.root}/tmp'}
    env = self.base | env | (self.world.environment if is_odd else {})
    if broken := env.pop(worlds.BROKEN, None):
      os.makedirs(f'{self.root}/broken', exist_ok=True)
      with open(f'{self.root}/broken/{broken}.py', 'w') as file:
        file.write("raise OSError('lib.so: undefined symbol: x')\n")
      env['PYTHONPATH'] = f'{self.root}/broken:{ROOT}'
    known = {k: v for k, v in env.items() if v is not None}
    return {k: v.replace('{root}', self.root) for k, v in known.items()}

  def flags(self, stage):
    """The flags of a command, by name."""
    if stage == 'prepare':
      source = f'folder:{self.given["source"]}'
      flags = {'source': source, 'name': self.world.name, 'size': 24}
      return flags | {'data_dir': self.given['data']}
    workdir = {'workdir': self.given['workdir']}
    if stage == 'evaluate':
      return {'mode': 'evaluate', 'views': 'one', **workdir}
    return {  # The config comes first, as ml_collections requires.
      'config': os.path.join(self.given['config'], self.world.config_file),
      'config.train.epochs': 2 if stage == 'resume' else 1,
      'config.input.dataset': self.world.name,
      'config.input.data_dir': self.given['data'],
      **workdir,
    }

  def files(self):
    """By path, the digest of every file here; None for folders."""
    found = {}
    for folder, _, files in os.walk(self.root):
      found[folder] = None
      for path in (os.path.join(folder, file) for file in files):
        with open(path, 'rb') as stream:
          found[path] = hashlib.sha256(stream.read()).digest()
    own = (f'{self.root}/tmp', f'{self.root}/home/.cache')
    return {k: v for k, v in found.items() if not k.startswith(own)}


def write_images(folder, world):
  """Twelve images; their pixels and labels are the same in every world."""
  rng = np.random.default_rng(0)
  for i, file in enumerate(world.files):
    split, name = 'train' if i < 8 else 'val', world.classes[i % 3]
    if split == 'val' and world.val_form:
      name = unicodedata.normalize(world.val_form, name)
    pixels = rng.integers(0, 256, (26, 26, 3), dtype=np.uint8)
    os.makedirs(f'{folder}/{split}/{name}', exist_ok=True)
    with open(f'{folder}/{split}/{name}/{file}', 'wb') as stream:
      Image.fromarray(pixels).save(stream, 'PNG')


def run_process(stage, flags, cwd, environment):
  """Runs a command as a user does."""
  module = 'prepare' if stage == 'prepare' else 'main'
  arguments = [f'--{key}={value}' for key, value in flags.items()]
  done = subprocess.run(
    [sys.executable, '-m', f'alexnet_jax.{module}', *arguments],
    cwd=cwd,
    env=environment,
    capture_output=True,
  )
  return Ended(done.returncode, done.stderr.decode('utf-8', 'replace'))


def run_here(stage, flags, cwd, environment):
  """Runs a command in this process, which takes a tenth of the time."""
  printed = io.StringIO()
  try:
    with (
      contextlib.chdir(cwd),
      mock.patch.dict(os.environ, environment),
      contextlib.redirect_stderr(printed),
      contextlib.redirect_stdout(io.StringIO()),
    ):
      _prepare(flags) if stage == 'prepare' else _main(flags)
  except SystemExit as error:
    if isinstance(error.code, str):
      return Ended(1, printed.getvalue() + error.code)
    return Ended(error.code, printed.getvalue())
  except Exception as error:
    raise Fault(f'Traceback of {stage}: {type(error).__name__}: {error}') from (
      error
    )
  return Ended(0, printed.getvalue())


def _prepare(flags):
  names = ('source', 'name', 'data_dir')
  try:
    prepare.prepare(*(flags[name] for name in names), size=flags['size'])
  except (ValueError, OSError, RuntimeError, MemoryError) as error:
    sys.exit(f'{type(error).__name__}: {error}')  # As its command does.


def _main(flags):
  arguments = [f'--{key}={value}' for key, value in flags.items()]
  argv = ['main', '--num_processes=1', *arguments]
  sys.modules.pop('config_config', None)  # From an earlier command.
  with mock.patch.object(sys, 'argv', argv), flagsaver.flagsaver():
    main.main(main.parse_flags(argv))


def play(place):
  """Runs all commands; returns what they computed and which were refused."""
  refused, corrected = [], {}
  for stage in STAGES:
    flags = place.flags(stage)
    if 'prepare' in refused and stage in ('train', 'resume'):
      plain = place.plain.flags(stage)
      names = ('config.input.dataset', 'config.input.data_dir')
      flags |= {name: plain[name] for name in names}
    # What a command has refused is not tried again.
    flags |= {key: v for key, v in corrected.items() if key in flags}
    before = place.files()
    ended = place.run(stage, flags, place.cwd, place.environment(True))
    if not ended.code:
      check_success(place, stage, ended, flags, before)
      continue
    check_refusal(place, stage, ended, before, refused)
    refused.append(stage)
    if stage == 'prepare':
      continue
    if stage == 'train':
      corrected = {
        'config': place.plain.flags(stage)['config'],
        'workdir': f'{place.root}/corrected',
      }
      flags |= corrected
    ended = place.run(stage, flags, place.cwd, place.environment(False))
    if ended.code:
      raise Fault(f'the corrected {stage} fails: {ended.printed}')
  return values(place.path(flags['workdir'])), refused


def check_success(place, stage, ended, flags, before):
  """Checks the data set, and that nothing beside its own folder changed."""
  if 'Traceback' in ended.printed:
    raise Fault(f'{stage} succeeds with a traceback: {ended.printed}')
  if stage == 'prepare':
    own = os.path.join(place.path(flags['data_dir']), flags['name'])
    check_data_set(f'{own}/1.0.0', place.world)
  else:
    own = place.path(flags['workdir'])
  # Such as a cache that a variable names.
  named = [v for v in place.environment(True).values() if place.root in v]
  for path in {path for path, _ in place.files().items() ^ before.items()}:
    is_above = f'{own}/'.startswith(f'{path}/')
    if not is_above and not f'{path}/'.startswith((f'{own}/', *named)):
      raise Fault(f'{stage} writes {path}')


def check_data_set(path, world):
  with open(f'{path}/label.labels.txt', encoding='utf-8', newline='\n') as file:
    names = file.read().removesuffix('\n').split('\n')
  with open(f'{path}/dataset_info.json', encoding='utf-8') as file:
    splits = json.load(file)['splits']
  counts = {s['name']: sum(map(int, s['shardLengths'])) for s in splits}
  if names != [*world.classes] or counts != {'train': 8, 'validation': 4}:
    raise Fault(f'prepare stores {counts} examples of the classes {names}')


def check_refusal(place, stage, ended, before, refused):
  """Checks the message, and that every file is as it was."""
  text = ended.printed
  for name in '/'.join((place.cwd, *place.given.values())).split('/'):
    text = text.replace(name, name.replace('\n', ' '))
  lines = [x for x in text.split('\n') if x and not x.startswith(LOG)]
  if ended.code not in (1, 2) or 'Traceback' in text or not lines:
    raise Fault(f'{stage} ends with {ended.code}: {text}')
  if stage in ('resume', 'evaluate') and 'train' not in refused:
    raise Fault(f'{stage} is refused after a training: {text}')
  if len(lines) > 3:
    raise Fault(f'{stage} is refused with {len(lines)} lines: {text}')
  if changed := {path for path, _ in place.files().items() ^ before.items()}:
    raise Fault(f'{stage} is refused, but writes {sorted(changed)}: {text}')
  if place.world.harmless:
    raise Fault(f'{stage} refuses harmless names: {text}')


def values(workdir):
  """Metrics and predictions of a run, less what depends on the clock."""
  with open(f'{workdir}/metrics.csv', newline='') as file:
    rows = [*csv.DictReader(file)]
  rows = [
    {k: v for k, v in row.items() if k not in runs.TIMINGS} for row in rows
  ]
  with open(f'{workdir}/evaluation.json', encoding='utf-8') as file:
    evaluation = json.load(file)
  del evaluation['dataset']  # Its name.
  with np.load(f'{workdir}/predictions/validation.one_view.npz') as arrays:
    predictions = [arrays[key].tolist() for key in ('log_probs', 'labels')]
  return rows, evaluation, predictions


def numbers(values_):
  """The numbers in nested values, in order."""
  if isinstance(values_, dict):
    values_ = values_.values()
  elif isinstance(values_, int | float):
    return [values_]
  elif isinstance(values_, str):
    with contextlib.suppress(ValueError):
      return [float(values_)]
    return []
  return [number for value in values_ for number in numbers(value)]


@pytest.fixture(scope='module')
def plain_here(shared_programs, tmp_path_factory):
  verbosity = absl_logging.get_verbosity()
  yield play_plain(tmp_path_factory.mktemp('plain'), run_here, {})
  absl_logging.set_verbosity(verbosity)
  for name in ('alexnet_jax', 'jax'):
    logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope='module')
def plain_process(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plain')
  environment = {
    'PATH': os.environ['PATH'],
    'PYTHONPATH': str(ROOT),
    'PYTHONDONTWRITEBYTECODE': '1',
    'LANG': 'C.UTF-8',
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': f'{folder}/cache',
  }
  return play_plain(folder, run_process, environment)


def play_plain(folder, run, environment):
  """The plain place, and what its commands compute."""
  plain = Place(worlds.World(), f'{folder}/plain', run, environment)
  expected, refused = play(plain)
  rows, _, predictions = expected
  assert not refused and len(rows) == len(predictions[1]) == 4
  return plain, expected


def check_world(world, label, folder, plain):
  plain, expected = plain
  place = Place(world, f'{folder}/w', plain.run, plain.base, plain)
  try:
    found, refused = play(place)
    if world.same_bits and found != expected:
      raise Fault(f'the values are {found}, not {expected}')
  except Fault as fault:
    pytest.fail(f'{label}: {world}\n{fault}', pytrace=False)
  finally:
    if world.closed:  # pytest will remove it.
      os.chmod(place.closed, 0o700)
  assert numbers(found) == pytest.approx(numbers(expected), rel=1e-4)
  print(f'{label}, refused: {", ".join(refused) or "nothing"}')


@pytest.mark.parametrize('name', worlds.QUICK)
def test_quick_worlds(name, tmp_path, plain_here):
  check_world(worlds.QUICK[name], name, tmp_path, plain_here)


@pytest.mark.slow
@pytest.mark.parametrize('number', range(NUM_WORLDS))
def test_paths(number, tmp_path, plain_here):
  world = worlds.draw(SEED, number)
  check_world(world, f'seed {SEED}, number {number}', tmp_path, plain_here)


@pytest.mark.slow  # Each of the four commands starts Python and JAX.
@pytest.mark.parametrize('number', range(NUM_WORLDS))
def test_environments(number, tmp_path, plain_process):
  world = worlds.draw_environment(SEED, number)
  check_world(world, f'seed {SEED}, number {number}', tmp_path, plain_process)
