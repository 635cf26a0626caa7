r"""tf.data over JPEG files, a worker of benchmarks.input_pipeline.

    python benchmarks/tf_data.py FOLDER THREADS BATCH

Needs TensorFlow and nothing of this project. FOLDER holds files NUMBER_LABEL.jpg.
For a line 'DRAIN COUNT' on stdin it takes DRAIN batches and then, timed, COUNT. The
decoder has its default settings, one of which is a less exact transform.
"""

import itertools
import json
import pathlib
import sys
import time


def batches(folder, threads, batch_size):
  """Endless shuffled batches of images and labels, as they are usually made."""
  import tensorflow as tf

  def load(path, label):
    return tf.io.decode_jpeg(tf.io.read_file(path), channels=3), label

  paths = sorted(pathlib.Path(folder).glob('*.jpg'))
  labels = [int(path.stem.partition('_')[2]) for path in paths]
  data = tf.data.Dataset.from_tensor_slices(([str(p) for p in paths], labels))
  data = data.shuffle(len(paths), seed=0).repeat()
  data = data.map(load, num_parallel_calls=threads)
  data = data.batch(batch_size, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.threading.private_threadpool_size = threads
  return iter(data.with_options(options))


def main(folder, threads, batch_size):
  source = batches(folder, int(threads), int(batch_size))
  for line in sys.stdin:
    for number in map(int, line.split()):
      cpu, wall = time.process_time(), time.perf_counter()
      for _ in itertools.islice(source, number):
        pass
      figures = time.process_time() - cpu, time.perf_counter() - wall
    print('answer', json.dumps(figures), flush=True)


if __name__ == '__main__':
  if len(sys.argv) != 4:
    print(__doc__)
    sys.exit('--help' not in sys.argv)
  main(*sys.argv[1:])
