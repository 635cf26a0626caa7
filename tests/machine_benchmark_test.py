"""The rates of benchmarks.machine, and where a machine has no GPU."""

import pytest

from benchmarks import machine


def test_rates_are_work_over_seconds(monkeypatch):
  monkeypatch.setattr(
    machine.harness, 'seconds', lambda work, rounds: work[''] and {'': [2, 4]}
  )
  monkeypatch.setattr(machine.harness, 'steps_per_wait', lambda: 3)
  assert machine.product_flops(10, 'float32', 'highest', 2) == [3000, 1500]
  # 3 copies, read and written.
  assert machine.copy_bytes(400, 2) == [3 * 2 * 400 / 2, 3 * 2 * 400 / 4]


@pytest.mark.parametrize('dtype, precision', machine.PRODUCTS.values())
def test_products_and_copies_run(dtype, precision):
  (rate,) = machine.product_flops(64, dtype, precision, 1)
  assert 1e6 < rate < 1e16


def test_the_gpu_is_described_by_nvidia_smi_if_there_is_one(
  monkeypatch, tmp_path
):
  monkeypatch.setenv('PATH', str(tmp_path))
  assert machine.nvidia_smi() == ''
  program = tmp_path / 'nvidia-smi'
  program.write_text('#!/bin/sh\necho "H200, $1"\n')
  program.chmod(0o755)
  assert machine.nvidia_smi() == f'H200, --query-gpu={machine.NVIDIA_SMI}'
