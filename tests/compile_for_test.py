"""Reading kernels and their bytes from the text of a compiled program."""

import subprocess
import sys

from experiments import compile_for

PROGRAM = """HloModule jit_step

%inside (p: f32[8]) -> f32[8] {
  ROOT %add.9 = f32[8]{0} add(%p, %p)
}

ENTRY %main (x: f32[2,3], y: bf16[4]) -> (f32[2,3], bf16[4]) {
  %x = f32[2,3]{1,0} parameter(0)
  %y = bf16[4]{0} parameter(1)
  %conv.1 = (f32[2,3]{1,0}, u8[5]{0}) custom-call(%x, %y), custom_call_target="cudnn", metadata={op_name="step/conv1"}
  %start = f32[3]{0} all-gather-start(%y)
  %done = f32[3]{0} all-gather-done(%start)
  %get = f32[2,3]{1,0} get-tuple-element(%conv.1), index=0
  %fused = pred[]{} fusion(%get), kind=kLoop, calls=%inside
  ROOT %out = (f32[2,3]{1,0}, bf16[4]{0}) tuple(%get, %y)
}
"""


def test_the_bytes_of_a_tuple_are_those_of_its_parts():
  assert compile_for.num_bytes('f32[2,3]{1,0}') == 24
  assert compile_for.num_bytes('(bf16[4]{0}, pred[]{}, u32[2]{0})') == 8 + 1 + 8


def test_kernels_are_those_of_the_entry_with_the_bytes_they_access():
  assert compile_for.kernels(PROGRAM) == [
    (0, 24 + 5 + 24 + 8, 'cudnn', 'step/conv1'),
    (0, 1 + 24, 'fusion', ''),
    (0, 12 + 8, 'all-gather-start', ''),
  ]


def test_on_a_tpu_those_with_the_most_estimated_cycles_come_first():
  config = '{"estimated_cycles":"77"}'
  program = PROGRAM.replace(
    'f32[2,3]{1,0} get-tuple', 'f32[2,3]{1,0:T(8,128)} get-tuple'
  ).replace('kind=kLoop', f'kind=kLoop, backend_config={config}')
  cycles, accessed, kind, _ = compile_for.kernels(program)[0]
  assert (cycles, accessed, kind) == (77, 1 + 24, 'fusion')


def test_a_missing_file_is_one_line():
  flags = ['--target=no.txtpb', '--plugin=no.so']
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.compile_for', *flags],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr == '--target=no.txtpb is not a file\n'
