#!/usr/bin/env bash
# What comes before benchmarks.gpu on a rented machine without network, step by
# step, from the top of the repository:
#
#   benchmarks/gpu.sh install WHEELS   installs the wheels of that folder, which
#                                      were downloaded elsewhere (see `wheels`)
#   benchmarks/gpu.sh wheels WHEELS    downloads, on a machine with network, what a
#                                      machine with JAX, Flax, Optax, Orbax and
#                                      PyTorch on Python 3.12 still lacks
#   benchmarks/gpu.sh prepare DATA     prepares each DATA/NAME, a folder with
#                                      train/CLASS/ and val/CLASS/, as data set NAME
#   benchmarks/gpu.sh smoke OUT        tries every part, in small
#   benchmarks/gpu.sh run OUT [FLAG..] runs benchmarks.gpu; OUT.tar.gz has the
#                                      results after each part, without checkpoints
#
# SITE (default /tmp/site) is the folder of the installed wheels, DATA_DIR
# (default /tmp/alexnet_jax_data) that of the prepared data sets.
set -eu
site=${SITE:-/tmp/site} data_dir=${DATA_DIR:-/tmp/alexnet_jax_data}
export PYTHONPATH=$site PYTHONUNBUFFERED=1
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
step=$1 folder=$2
shift 2
case $step in
  wheels)
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
      --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
      --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64 \
      -d "$folder" array-record clu dm-tree docstring-parser etils \
      googleapis-common-protos grain immutabledict importlib_resources \
      ml-collections more-itertools portpicker simplejpeg simple-parsing \
      tensorboardX tensorflow-datasets tensorflow-metadata termcolor toml
    # There are only sources of this one, in pure Python.
    python3 -m pip wheel -q --no-deps -w "$folder" promise==2.3
    ;;
  install)
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
      --upgrade --target "$site" "$folder"/*.whl
    python3 -c 'import alexnet_jax.main, jax; print(jax.__version__, jax.devices())'
    ;;
  prepare)
    for data in "$folder"/*/; do
      name=$(basename "$data") size=256
      [ "$name" = cifar10 ] && size=32
      python3 -m alexnet_jax.prepare --source="folder:${data%/}" --name="$name" \
        --size=$size --data_dir="$data_dir"
    done
    ;;
  smoke)
    python3 -m benchmarks.gpu --quick --output="$folder" --data_dir="$data_dir"
    ;;
  run)
    python3 -m benchmarks.gpu --output="$folder" --data_dir="$data_dir" \
      --archive="$folder.tar.gz" "$@"
    ;;
  *) usage ;;
esac
