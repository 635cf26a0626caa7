"""The config of a run so far: what may change, and keys of earlier versions."""

import importlib
import json
import pathlib

import pytest

from alexnet_jax import config as config_lib
from alexnet_jax import recorded_config
from configs import paper

CONFIGS = pathlib.Path(paper.__file__).parent
NAMES = sorted(path.stem for path in CONFIGS.glob('[!_]*.py'))
PAPER_KEYS = sorted(config_lib.flatten(paper.get_config()))

# What a continued run may change; with any other key it is another run.
MAY_CHANGE = [
  'input.data_dir',
  'input.cache',
  'input.max_bad_records',
  'train.epochs',
  'train.checkpoint_every_steps',
  'train.log_every_steps',
  'train.plateau_warning_steps',
  'train.diagnostics_every_evals',
  'train.profile_step',
  'train.profile_steps',
  'eval.batch_size',
  'mesh.layout',
  'mesh.towers',
]


def load(name):
  return importlib.import_module(f'configs.{name}').get_config()


@pytest.mark.parametrize('key', PAPER_KEYS)
def test_a_continued_run_may_change_only_how_far_how_often_and_where(key):
  config = paper.get_config()
  made_with = config_lib.flatten(config)
  now, made_with[key] = made_with[key], '/another'
  if key in MAY_CHANGE:
    recorded_config.check_unchanged(config, made_with, 'the run')
    return
  with pytest.raises(ValueError) as error:
    recorded_config.check_unchanged(config, made_with, 'the run')
  first, second = str(error.value).split('\n')
  assert first.startswith('the run was made with another config; use a fresh')
  assert second == f"config.{key} is '/another' there but {now!r} here"


def test_the_length_of_a_cosine_may_not_change():
  config = paper.get_config()
  config.optimizer.schedule = 'cosine'
  recorded = config_lib.flatten(config)
  recorded_config.check_unchanged(config, recorded, 'the run')
  others = dict.fromkeys(set(MAY_CHANGE) - {'train.epochs'}, 'another')
  recorded_config.check_unchanged(config, recorded | others, 'the run')
  for may_change in (
    recorded_config.MAY_CHANGE,
    recorded_config.EVALUATION_MAY_CHANGE,
  ):
    with pytest.raises(ValueError) as error:
      recorded_config.check_unchanged(
        config, recorded | {'train.epochs': 45.0}, 'the run', may_change
      )
    assert str(error.value).split('\n')[1:] == [
      'config.train.epochs is 45.0 there but 90.0 here'
    ]


def test_all_changed_keys_are_named_and_one_that_is_new_and_one_that_is_gone():
  made_with = config_lib.flatten(paper.get_config())
  made_with['seed'] = 7
  made_with['model.gone'] = 1
  del made_with['augment.flip']
  with pytest.raises(ValueError) as error:
    recorded_config.check_unchanged(paper.get_config(), made_with, 'the run')
  assert str(error.value).split('\n')[1:] == [
    'config.augment.flip is not set there but True here; config.model.gone is 1'
    ' there but not set here; config.seed is 7 there but 0 here'
  ]


def test_however_many_keys_have_changed_the_message_has_three_lines():
  made_with = dict.fromkeys(config_lib.flatten(paper.get_config()), 'other')
  with pytest.raises(ValueError) as error:
    recorded_config.check_unchanged(paper.get_config(), made_with, 'the run')
  _, changed, more = str(error.value).split('\n')
  assert changed.count(' but ') == 5
  assert more == f'and {len(made_with) - len(MAY_CHANGE) - 5} more keys differ'


def test_any_number_of_classes_is_that_of_the_data_set_until_it_is_known():
  config = load('folder')
  recorded = config_lib.flatten(config) | {'model.num_classes': 7}
  recorded_config.check_unchanged(config, recorded, 'the run')
  resolved = recorded_config.resolve(config, 7)
  assert config_lib.flatten(resolved) == recorded
  assert config.model.num_classes == 0  # It is a copy.
  with pytest.raises(ValueError, match='num_classes is 7 there but 8 here'):
    recorded_config.check_unchanged(
      recorded_config.resolve(config, 8), recorded, 'the run'
    )
  assert (
    recorded_config.resolve(paper.get_config(), 7).model.num_classes == 1000
  )


@pytest.mark.parametrize(
  'path', ['../pre', '{}/pre', '~/pre', '{}/link', '{}/a/../pre/']
)
def test_what_a_run_starts_from_is_the_same_from_every_folder(
  tmp_path, monkeypatch, path
):
  for folder in ('pre', 'other', 'a/b'):
    (tmp_path / folder).mkdir(parents=True)
  (tmp_path / 'link').symlink_to('pre')
  monkeypatch.setenv('HOME', str(tmp_path))
  config = paper.get_config()
  config.train.init_from = path.format(tmp_path)
  monkeypatch.chdir(tmp_path / 'a')
  recorded = config_lib.flatten(recorded_config.resolve(config, 10))
  assert recorded['train.init_from'] == str(tmp_path / 'pre')
  recorded_config.check_unchanged(config, recorded, 'the run')
  # An earlier version recorded it as given; this is the same folder.
  as_given = recorded | {'train.init_from': config.train.init_from}
  recorded_config.check_unchanged(config, as_given, 'the run')
  monkeypatch.chdir(tmp_path / 'a/b')
  config.train.init_from = '../../pre'
  recorded_config.check_unchanged(config, recorded, 'the run')
  config.train.init_from = '../pre'
  with pytest.raises(ValueError, match=f"'{tmp_path}/a/pre' here"):
    recorded_config.check_unchanged(config, recorded, 'the run')


def test_a_record_that_names_init_workdir_is_read():
  flat = config_lib.flatten(load('conv6_finetune'))
  flat['train.init_workdir'] = flat.pop('train.init_from')
  for key in ('optimizer.frozen_layers', 'optimizer.fc8_rate_factor'):
    del flat[key]
  upgraded = recorded_config.upgrade(flat)
  assert upgraded['train.init_from'] == 'runs/conv6'
  recorded_config.check_unchanged(load('conv6_finetune'), upgraded, 'the run')


def test_evaluation_may_change_the_split_as_well():
  assert recorded_config.EVALUATION_MAY_CHANGE == {
    *MAY_CHANGE,
    'input.eval_split',
  }


# In these a pretrained network may differ: its classes, its first weights, and
# what only its training did.
PRETRAINED = [
  'num_classes',
  'init_std',
  'conv345_init_std',
  'fc67_init_std',
  'init_bias',
  'dtype',
]


def test_fine_tuning_takes_the_layers_of_its_pretraining():
  made_with = config_lib.flatten(load('conv6'))
  recorded_config.check_same_network(load('conv6_finetune'), made_with, 'there')


@pytest.mark.parametrize(
  'key', [k for k in PAPER_KEYS if k.startswith('model.')] + ['input.crop_size']
)
def test_pretrained_layers_must_fit_the_network(key):
  config = paper.get_config()
  made_with = config_lib.flatten(config)
  now, made_with[key] = made_with[key], 7
  if key.removeprefix('model.') in PRETRAINED:
    recorded_config.check_same_network(config, made_with, 'the run')
    return
  with pytest.raises(ValueError) as error:
    recorded_config.check_same_network(config, made_with, 'the run')
  assert str(error.value).split('\n') == [
    'the run is another network; use its values:',
    f'config.{key} is 7 there but {now!r} here',
  ]


def test_pretraining_may_differ_outside_the_network():
  made_with = config_lib.flatten(paper.get_config())
  others = {
    key: 'another'
    for key in made_with
    if not key.startswith('model.')
    and key not in ('input.crop_size', 'input.channel_stds')
  }
  recorded_config.check_same_network(
    paper.get_config(), made_with | others, 'the run'
  )


# A config of today as an earlier version would have recorded it: one key under
# another name, one key missing, one key more.
OLD_KEYS = {
  'RENAMED': {'model.classes': 'model.num_classes'},
  'ADDED': {'augment.flip': True},
  'REMOVED': {'optimizer.nesterov': False},
}


@pytest.fixture
def recorded(monkeypatch):
  for name, keys in OLD_KEYS.items():
    monkeypatch.setattr(recorded_config, name, keys)
  flat = config_lib.flatten(paper.get_config())
  flat['model.classes'] = flat.pop('model.num_classes')
  del flat['augment.flip']
  return flat | {'optimizer.nesterov': False}


def test_a_record_of_an_earlier_version_is_read_in_the_keys_of_today(recorded):
  flat = recorded_config.upgrade(recorded)
  assert flat == config_lib.flatten(paper.get_config())
  recorded_config.check_unchanged(paper.get_config(), flat, 'the run')


def test_a_renamed_key_keeps_the_value_that_was_recorded(recorded):
  flat = recorded_config.upgrade(recorded | {'model.classes': 10})
  assert flat['model.num_classes'] == 10
  assert 'model.classes' not in flat


def test_a_missing_key_gets_the_old_behaviour_not_the_default_of_today(
  recorded,
):
  config = paper.get_config()
  config.augment.flip = False  # As if today's default were another.
  with pytest.raises(ValueError) as error:
    recorded_config.check_unchanged(
      config, recorded_config.upgrade(recorded), 'the run'
    )
  assert str(error.value).split('\n')[1:] == [
    'config.augment.flip is True there but False here'
  ]
  flat = recorded_config.upgrade(recorded | {'augment.flip': False})
  assert flat['augment.flip'] is False  # A value that was recorded stays.


def test_a_removed_key_with_another_value_is_refused_by_name(recorded):
  flat = recorded_config.upgrade(recorded | {'optimizer.nesterov': True})
  with pytest.raises(ValueError) as error:
    recorded_config.check_unchanged(paper.get_config(), flat, 'the run')
  assert str(error.value).split('\n')[1:] == [
    'config.optimizer.nesterov is True there but not set here'
  ]


def test_a_config_of_today_needs_no_upgrade():
  flat = config_lib.flatten(paper.get_config())
  assert recorded_config.upgrade(flat) == flat


def test_what_upgrade_gives_exists_and_what_it_takes_does_not():
  assert set(recorded_config.RENAMED.values()) <= set(PAPER_KEYS)
  assert set(recorded_config.ADDED) <= set(PAPER_KEYS)
  gone = {*recorded_config.RENAMED, *recorded_config.REMOVED}
  assert gone.isdisjoint(PAPER_KEYS)
  # They are compared with values from JSON: a tuple would equal no list.
  for values in (recorded_config.ADDED, recorded_config.REMOVED):
    assert json.loads(json.dumps(dict(values))) == dict(values)


@pytest.mark.parametrize('name', NAMES)
def test_unflatten_gives_back_what_flatten_took_apart(name):
  config = load(name)
  found = recorded_config.unflatten(config_lib.flatten(config))
  assert found.to_dict() == config.to_dict()
  assert found.is_locked and found.model.is_locked


def test_equal_numbers_of_another_type_are_the_same_value():
  config = load('source')
  recorded = config_lib.flatten(config)
  recorded |= {'model.lrn_k': 2, 'optimizer.drop_epochs': [23, 51, 78]}
  recorded_config.check_unchanged(config, recorded, 'the run')
  config = load('conv6_finetune')
  recorded = config_lib.flatten(load('conv6')) | {'model.lrn_k': 2}
  recorded_config.check_same_network(config, recorded, 'there')
