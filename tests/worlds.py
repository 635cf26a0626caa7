"""Worlds for fuzz_test.py: odd paths, names and environments, drawn by a seed.

A world says where the user stands, how the folders, the data set, the classes
and the images are called, and which environment variables are set. Each is
drawn on its own from its seed and number.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import random
import unicodedata

PLACES = ('config', 'source', 'data', 'workdir')
NUM_CLASSES = 3
NUM_FILES = 12  # Eight training examples and four of validation.

# Every command must work in a world of these; any other may also be refused.
HARMLESS = (
  'a',
  'B 2',
  'é',
  '猫',
  'x=1',
  'a,b',
  'a+b',
  '(1)',
  'a-b',
  '_',
  'a.b',
)
# What some library, shell, terminal or file system takes for syntax.
ODD = (
  *('[1]', '[ab]', 'lr=[0.01]', 'x[0:3]', '[!a]', '[', ']', '\\', '\\n', '\\1'),
  *('"', "'", '*', '?', '**', '{}', '{0}', '{a,b}', '{', '%2F', '%s', '%(a)s'),
  *('%', '#', '#1', '$HOME', '${a}', '$', '|', ';', ',', '=', '@', '@4', ':'),
  *('&', '<', '>', '!', '`', '^', '(', '~', '-', '--workdir', 'a:b', '1:2'),
  *(' ', '\n', '\t', '\r', '\x0b', '\x1b[31m', '\x7f', '\x85', '\u2028'),
  *('\u00a0', '\u200b', '\ufeff', '\u202e', 'e\u0301', 'ﬁ', '\U0001f600'),
  *('\udcff', '\udce9', '\udcc3', 'İ', 'ß'),
  *('1', '1.0.0', 'train', 'val', 'checkpoints', 'None', 'nan', 'con'),
  *('.incomplete', '.tmp', '.npz', '.array_record', '-of-', 'damaged.1'),
  *('.orbax-checkpoint-tmp-', '.png', '.py', 'digits', 'folder:', 'imagenet:'),
)
WHOLE = (  # Not mixed with other text.
  *(
    '~',
    '~root',
    '~nobody-here',
    '-x',
    '--',
    '-',
    ' ',
    ' x',
    'x ',
    '...',
    '..x',
  ),
  *('x' * 255, 'é' * 127, '猫' * 85, 'gs:', 'http:', 'file:', '$HOME', 'con.'),
)
URLS = (
  'gs://b/x',
  's3://b/x',
  'hdfs://h/x',
  'file:///x',
  'http://h/x',
  'gs:/x',
)
NAMES = (
  'x-y',
  'a b',
  '',
  '../x',
  'é',
  'a/b',
  '.',
  '1',
  '_',
  'X' * 200,
  'x' * 256,
)

TOO_LONG = 'x' * 256  # Bytes; a file system takes 255.
CONFIG_FILE = 'tiny.py'
NO_CONFIG_FILES = ('missing.py', f'{TOO_LONG}.py', '')  # '' is the folder.

BROKEN = 'BROKEN'  # Stands for a module that cannot be imported.
# Environment variables with the values that are tried; None: not set.
VARIABLES = {
  'JAX_DEFAULT_PRNG_IMPL': ('rbg', 'unsafe_rbg', 'nonsense'),
  'JAX_ENABLE_X64': ('1', 'maybe'),
  'JAX_DISABLE_JIT': ('1',),
  'JAX_TRANSFER_GUARD': ('disallow', 'log', 'disallow_explicit'),
  'JAX_TRANSFER_GUARD_HOST_TO_DEVICE': ('disallow',),
  'JAX_TRANSFER_GUARD_DEVICE_TO_HOST': ('disallow',),
  'JAX_DEBUG_NANS': ('1',),
  'JAX_DEBUG_INFS': ('1',),
  'JAX_NUMPY_RANK_PROMOTION': ('raise', 'warn'),
  'JAX_NUMPY_DTYPE_PROMOTION': ('strict',),
  'JAX_PLATFORMS': ('cuda', 'tpu', 'nonsense', 'cpu,cuda', 'cuda,cpu', ''),
  'JAX_PLATFORM_NAME': ('cpu', 'gpu'),
  'JAX_DEFAULT_MATMUL_PRECISION': ('bfloat16', 'highest', 'nonsense'),
  'JAX_CHECK_TRACER_LEAKS': ('1',),
  'JAX_ENABLE_CHECKS': ('1',),
  'JAX_LOG_COMPILES': ('1',),
  'JAX_LOGGING_LEVEL': ('DEBUG',),
  'JAX_TRACEBACK_FILTERING': ('off',),
  'JAX_DEBUG_KEY_REUSE': ('1',),
  'JAX_THREEFRY_PARTITIONABLE': ('0',),
  'JAX_RANDOM_SEED_OFFSET': ('7',),
  'JAX_LEGACY_PRNG_KEY': ('error',),
  'JAX_ENABLE_CUSTOM_PRNG': ('1',),
  'JAX_SOFTMAX_CUSTOM_JVP': ('0',),
  'JAX_NUM_CPU_DEVICES': ('2', '3'),
  'JAX_NO_TRACING': ('1',),
  'JAX_DISABLE_MOST_OPTIMIZATIONS': ('1',),
  'JAX_EXPLAIN_CACHE_MISSES': ('1',),
  'JAX_ENABLE_COMPILATION_CACHE': ('0',),
  'JAX_COMPILATION_CACHE_DIR': ('', '{odd}', 'gs://b/x', '/dev/null/x', None),
  'JAX_RAISE_PERSISTENT_CACHE_ERRORS': ('1',),
  'JAX_USE_SHARDY_PARTITIONER': ('0',),
  'JAX_DEFAULT_DEVICE': ('cpu:0', 'nonsense'),
  'JAX_CPU_ENABLE_ASYNC_DISPATCH': ('0',),
  'JAX_DUMP_IR_TO': ('{odd}',),
  'JAX_NUM_PROCESSES': ('1', '2'),
  'JAX_COORDINATOR_ADDRESS': ('nonsense',),
  'XLA_FLAGS': (
    '--xla_force_host_platform_device_count=2',
    '--xla_nonsense=1',
    'nonsense',
  ),
  'LC_ALL': ('C', 'POSIX', 'de_DE.ISO-8859-1', 'nonsense'),
  'LANG': ('C', 'nonsense', None),
  'PYTHONIOENCODING': ('ascii', 'latin-1'),
  'PYTHONUTF8': ('0', '1'),
  'PYTHONOPTIMIZE': ('2',),
  'PYTHONHASHSEED': ('7',),
  'PYTHONSAFEPATH': ('1',),
  'HOME': (None, '', '/proc/nothing', '/dev/null', '{odd}', 'relative', '~'),
  'USER': (None, '\udcff'),
  'TMPDIR': ('{odd}', '/proc/nothing', '', 'relative'),
  'XDG_CACHE_HOME': ('/proc/nothing',),
  'TFDS_DATA_DIR': ('/proc/nothing', 'gs://b/x'),
  'CUDA_VISIBLE_DEVICES': ('', '-1', '0', 'nonsense'),
  'OMP_NUM_THREADS': ('1', 'nonsense'),
  'TF_CPP_MIN_LOG_LEVEL': ('0', 'nonsense'),
  'GLIBC_TUNABLES': ('', 'nonsense'),
  'GIT_DIR': ('/proc/nothing',),
  'PATH': ('', None),
  'TZ': ('nonsense',),
  'TERM': ('dumb', None),
  'COLUMNS': ('1', '0', 'nonsense'),
  'SLURM_JOB_ID': ('1',),
  'KUBERNETES_SERVICE_HOST': ('h',),
  'OMPI_MCA_orte_hnp_uri': ('nonsense',),
  'HTTPS_PROXY': ('nonsense',),
  BROKEN: ('torch', 'tensorflow', 'matplotlib', 'pandas', 'IPython'),
}
# They change the order of sums.
OTHER_BITS = {
  *('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES', 'JAX_DISABLE_MOST_OPTIMIZATIONS'),
  *('JAX_PLATFORMS', 'JAX_PLATFORM_NAME'),
}


@dataclasses.dataclass(frozen=True)
class World:
  """One user's surroundings.

  Attributes:
    cwd: the working directory, relative to the world's folder.
    given: by place, what the command line says: a path relative to `cwd`, or
      below '{root}', which stands for the world's folder.
    config_file: the file in the folder of `config` that the command line names;
      there is only `CONFIG_FILE`.
    closed: a place whose folder has mode 000, which root does not notice.
    name: name of the data set.
    classes: names of the class folders, sorted.
    files: names of the images, sorted.
    val_form: Unicode normal form of the class folders of val/.
    environment: variables that differ; None for one that is not set.
    harmless: whether every command must succeed.
    same_bits: whether values must be the same to the bit.
  """

  cwd: str = 'cwd'
  given: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {p: f'{{root}}/plain/{p}' for p in PLACES}
  )
  config_file: str = CONFIG_FILE
  closed: str | None = None
  name: str = 'plain'
  classes: Sequence[str] = ('a', 'b', 'c')
  files: Sequence[str] = tuple(f'{i:02}.png' for i in range(NUM_FILES))
  val_form: str | None = None
  environment: Mapping[str, str | None] = dataclasses.field(
    default_factory=dict
  )
  harmless: bool = True
  same_bits: bool = True


# Worlds that are always tried. Each of the first four had a fault of its own.
QUICK = {
  'a': World(
    cwd='cwd/c$HOME',
    given={
      'config': '{root}/config/&digits${a}/a\U0001f600/',
      'source': '{root}/source/a:b/%s/aa`',
      'data': '{root}/data/~nobody-here/',
      'workdir': 'c^lr=[0.01]1:2/',
    },
    name='x' * 255,
    classes=(' ', ']c', 'ac\u2028a:b'),
    files=(
      *('%(a)sdamaged.1', '***\udcff', '--', '-x', ']b\x0bx[0:3]', '`c-of-'),
      *('a:ba[:', 'ca-of-', 'con.', 'http:', 'val', '~a'),
    ),
    harmless=False,
  ),
  'b': World(
    cwd='cwd/~a:b \udce9/x ',
    given={
      'config': '{0}ab/x.../',
      'source': '{root}/source/aa\ta/nan[ab]',
      'data': '{root}/data/!^ba',
      'workdir': '\r/\u200bfolder:/#1@4\\1;/',
    },
    name='x_1',
    classes=('&', '[ab]ß*c', 'x..x'),
    files=(
      *('#cnana', '%(a)sc$', '%2F\n', ':', 'a:b', 'bbcdamaged.1', 'http:'),
      *('nanb', 'x.pngcbdamaged.1', '~root', '\xa0c', '\u2028cﬁ%(a)s'),
    ),
    val_form='NFD',
    harmless=False,
  ),
  'c': World(
    cwd='cwd/~/' + '猫' * 85,
    given={
      'config': '{root}/config/c&aa/b[!a]a/damaged.1[1]b',
      'source': '{root}/source/!ca/-of-\udcff',
      'data': '{root}/data/-of-$HOME/',
      'workdir': '-of-\\1a.npz',
    },
    name='x_1',
    classes=('%2Fc\udcc3b', '--', 'bc"'),
    files=(
      *('!', '$c<"', '<[!a]c', '>1a@', '\\*[ab]', 'aa\\1,', 'ac[!a]'),
      *('b\\1\x7f', 'digits.incompletec.tmp', '~root', 'é' * 127, '猫' * 85),
    ),
    harmless=False,
  ),
  'd': World(
    cwd='cwd/x...',
    given={
      'config': '{root}/config/#',
      'source': '{root}/source/damaged.1&b',
      'data': '{root}/data/' + '猫' * 85 + '/',
      'workdir': '{root}/workdir/c=\u202e**',
    },
    name='x_1',
    classes=('$HOME', '%(a)s', 'a'),
    files=(
      *(' ', "'", '1:2cca', 'a', 'c', 'ca:ba]', 'con.', 'c\u200bb', 'x' * 255),
      *('~nobody-here', '~root', 'ﬁ***'),
    ),
    harmless=False,
  ),
  'too long': World(
    given={
      'config': '{root}/config',
      'source': '{root}/source',
      'data': '{root}/' + TOO_LONG,
      'workdir': '{root}/workdir/' + TOO_LONG,
    },
    config_file=f'{TOO_LONG}.py',
    harmless=False,
  ),
  # What is read while a command runs; others are read by imports.
  'environment': World(
    given={place: f'{{root}}/{place}/é 猫' for place in PLACES},
    environment={
      'HOME': '/dev/null',
      'USER': '\udcff',
      'TMPDIR': '/proc/nothing',
      'XDG_CACHE_HOME': '/proc/nothing',
      'TFDS_DATA_DIR': 'gs://b/x',
      'GIT_DIR': '/proc/nothing',
      'PATH': '',
      'TZ': 'nonsense',
      'COLUMNS': 'nonsense',
      'SLURM_JOB_ID': '1',
      'KUBERNETES_SERVICE_HOST': 'h',
      'HTTPS_PROXY': 'nonsense',
    },
  ),
}


def draw(seed: int, number: int) -> World:
  """The world of this number: odd paths and names."""
  rng = random.Random(f'paths {seed} {number}')
  harmless = rng.random() < 0.25
  component = lambda: _component(rng, harmless)
  path = lambda n: '/'.join(component() for _ in range(rng.randint(1, n)))
  given = {}
  for place in PLACES:
    base = rng.choice(['{root}/' + place + '/', '{root}/' + place + '/', ''])
    given[place] = base + path(3) + rng.choice(['', '', '', '/'])
    if place != 'config' and not harmless and rng.random() < 0.06:
      given[place] = rng.choice(URLS)
  if not harmless and rng.random() < 0.06:
    given[rng.choice(['data', 'workdir'])] += f'/{TOO_LONG}'
  no_config = not harmless and rng.random() < 0.06
  is_closed = not harmless and rng.random() < 0.06
  odd_name = not harmless and rng.random() < 0.15
  world = World(
    cwd=f'cwd/{path(2)}',
    given=given,
    config_file=rng.choice(NO_CONFIG_FILES) if no_config else CONFIG_FILE,
    closed=rng.choice(PLACES) if is_closed else None,
    name=rng.choice([*NAMES, component()]) if odd_name else 'x_1',
    classes=_distinct(component, NUM_CLASSES),
    files=_distinct(component, NUM_FILES),
    val_form=rng.choice([None, None, 'NFC', 'NFD']) if not harmless else None,
    harmless=harmless,
  )
  if world.val_form:  # In the same order, as that is the order of the examples.
    names = [unicodedata.normalize(world.val_form, n) for n in world.classes]
    too_long = any(len(os.fsencode(name)) > 255 for name in names)
    if names != sorted(names) or too_long:
      return dataclasses.replace(world, val_form=None)
  return world


def draw_environment(seed: int, number: int) -> World:
  """The world of this number: one to four odd environment variables."""
  rng = random.Random(f'environments {seed} {number}')
  every = [(name, v) for name, values in VARIABLES.items() for v in values]
  chosen = rng.sample(every, rng.randint(1, 4))
  fill = lambda v: v and v.replace('{odd}', '{root}/' + _component(rng, False))
  environment = {key: fill(value) for key, value in chosen}
  if environment.keys() & {'LANG', 'LC_ALL'}:  # Python would overrule them.
    off = {'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    environment = off | environment
  # A path that not every terminal can show.
  given = {place: f'{{root}}/{place}/é 猫' for place in PLACES}
  return World(
    given=given,
    environment=environment,
    harmless=False,
    same_bits=not environment.keys() & OTHER_BITS,
  )


def _component(rng, harmless):
  """A name of a file or folder that is neither hidden nor too long."""
  if not harmless and rng.random() < 0.2:
    name = rng.choice(WHOLE)
  else:
    odd = lambda: rng.choice(HARMLESS if harmless else ODD)
    parts = [rng.choice([odd, lambda: rng.choice('abc')])() for _ in range(3)]
    name = ''.join(rng.sample([odd(), *parts], rng.randint(1, 4)))
  if name.startswith('.'):
    name = 'x' + name
  while len(os.fsencode(name)) > 255:
    name = name[:-1]
  return name


def _distinct(draw_name, number):
  """Sorted names that also differ in upper case and in Unicode's forms."""
  found = {}
  while len(found) < number:
    name = draw_name()
    found.setdefault(unicodedata.normalize('NFKC', name).lower(), name)
  return tuple(sorted(found.values()))
