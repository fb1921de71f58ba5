"""The software and hardware of a run: environment.json."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time

from mmlm.config import ROOT
from mmlm.parallel import describe_devices

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'tensorflow-datasets',
  'numpy',
  'tokenizers',
)
# `reproduce` writes these between two runs: their changes do not make a commit dirty.
RESULTS = ('experiments/results', 'experiments/README.md', 'README.md')
GPU_DEVICES = ('/dev/nvidiactl', '/dev/kfd')


def environment() -> dict:
  """Returns the contents of environment.json."""
  return {
    'command': shlex.join(sys.argv),
    'started': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    'commit': commit_of(ROOT),
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in PACKAGES},
    'devices': describe_devices(),
    'cpu_count': os.cpu_count(),
  }


def commit_of(folder: os.PathLike) -> str | None:
  """Returns the commit of a working tree, with '-dirty' after it where files were changed."""

  def git(*words: str) -> str:
    command = ['git', '-C', str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()

  results = [f':!{path}' for path in RESULTS]
  try:
    commit = git('describe', '--always')
    changed = git('status', '--porcelain', '--untracked-files=no', '--', '.', *results)
  except OSError:  # git is not installed
    return None
  if changed:
    return f'{commit}-dirty'
  return commit or None


def announce_environment() -> dict:
  """Prints devices and versions, with a warning if a GPU is not used; returns `environment()`."""
  result = environment()
  devices = result['devices']
  versions = result['versions']
  memory = devices['memory_bytes'] / 2**30
  print(
    f'{devices["count"]} x {devices["platform"]} ({devices["kind"]}, {memory:.0f} GiB), '
    f'{result["cpu_count"]} CPU cores; Python {result["python"]}, '
    f'jax {versions["jax"]}, flax {versions["flax"]}'
  )
  has_gpu = any(os.path.exists(path) for path in GPU_DEVICES)
  if has_gpu and devices['platform'] == 'cpu':
    print(
      'WARNING: this machine has a GPU, but jax runs on the CPU: '
      "pip install 'jax[cuda12]' (or unset JAX_PLATFORMS)."
    )
  return result
