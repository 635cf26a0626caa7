"""The benchmark of inference: the same net in each library, and its verdict."""

import io
import json
import sys

import numpy as np
import pytest

from benchmarks import harness
from benchmarks import inference
from benchmarks import train_step


def test_all_variants_are_one_net(monkeypatch, capsys):
  monkeypatch.setattr(harness, 'TURN', (2, 0.0))
  logits = {}
  for name in (inference.OURS, inference.STABLEHLO, inference.ONNX):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('go\ngo\n'))
    inference.take_turns(name, 2, 'float32', True)
    answers = [
      json.loads(line.removeprefix(harness.ANSWER))
      for line in capsys.readouterr().out.splitlines()
    ]
    (logits[name], first), *turns = answers
    assert len(turns) == 2 and 0 < max(turns) < first + 1
    assert len(logits[name]) == 1000
  deviation = np.std(logits[inference.OURS])
  assert deviation > 0.1
  for name in (inference.STABLEHLO, inference.ONNX):
    difference = np.subtract(logits[name], logits[inference.OURS])
    assert np.abs(difference).max() < 1e-4 * deviation


def test_pytorchs_net_is_ours():
  pytest.importorskip('torch')
  logits = [
    inference.create_variant(name, 2, 'float32', True)()
    for name in (inference.OURS, train_step.EAGER)
  ]
  assert logits[0].shape == logits[1].shape == (2, 1000)
  assert np.abs(np.subtract(*logits)).max() < 1e-4 * np.std(logits[0])


class Answers:
  """In place of a worker: the answers of one."""

  def __init__(self, command):
    self.name = next(n for n in LOGITS if repr(n)[1:-1] in command[-1])

  def receive(self):
    return LOGITS[self.name], 9.0

  def __call__(self):
    return 2.0 if self.name == inference.OURS else 3.0

  def close(self):
    pass


LOGITS = {
  inference.ONNX: [1.0, 2.0, 4.0001],
  train_step.EAGER: [1.0, 2.0, 4.1],
  inference.OURS: [1.0, 2.0, 4.0],
}


def test_ratios_are_those_of_equal_nets(monkeypatch):
  monkeypatch.setattr(harness, 'Worker', Answers)
  names = [inference.OURS, inference.ONNX]
  found = inference.compare(names, 8, 'float32', 2, False)
  assert found['ratios'][inference.ONNX]['median'] == 1.5
  assert found['seconds'][inference.OURS] == [2.0, 2.0]
  names.append(train_step.EAGER)
  with pytest.raises(SystemExit, match='PyTorch eager differs from ours by'):
    inference.compare(names, 8, 'float32', 2, False)


def test_the_bar_is_held_against_pytorchs_best_where_ours_does_worst():
  result = lambda **medians: {
    'ratios': {n: {'median': m} for n, m in medians.items()}
  }
  eager, compiled = train_step.EAGER, train_step.COMPILED
  figures = {
    'rounds': 7,
    'float32': {
      1: result(**{eager: 1.4, compiled: 1.05, inference.ONNX: 0.5}),
      32: result(**{eager: 1.1, compiled: 1.2}),
    },
  }
  line, passed = inference.verdict(figures)
  assert '1.050 (float32, batch 1)' in line and passed
  figures['bfloat16'] = {8: result(**{compiled: 0.9})}
  line, passed = inference.verdict(figures)
  assert '0.900 (bfloat16, batch 8)' in line and not passed
  assert inference.verdict({'float32': {1: result()}}) == (
    'without PyTorch: no ratio',
    True,
  )
