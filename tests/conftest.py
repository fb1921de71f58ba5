"""Shared by every test: eight forced host devices, a compilation cache, and where the real data
lie.
"""

import importlib
import os
import pathlib
import shutil
import sys
import tempfile

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'mmlm-tests-jax-cache')
)
os.environ.setdefault(
  'JAX_DISABLE_MOST_OPTIMIZATIONS', '1'
)  # Compiling is most of the time of a test, and models here are small.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import pytest  # noqa: E402
from absl import flags  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Tests of one room use helpers of another.
sys.path += [str(folder) for folder in sorted((ROOT / 'tests').iterdir()) if folder.is_dir()]


def pytest_addoption(parser):
  parser.addoption(
    '--parity',
    action='store_true',
    help='run only the tests that compare with other software; it must be installed',
  )


def pytest_collection_modifyitems(config, items):
  if config.getoption('--parity'):
    items[:] = [item for item in items if item.get_closest_marker('parity')]


def pytest_configure(config):
  config.addinivalue_line('markers', 'parity: compares with other software, where it is installed')
  # Grain reads a flag when it starts workers, and refuses before flags are parsed.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope='session')
def peer(pytestconfig):
  """name -> a module of other software; where it is not installed the test is skipped, but with
  --parity it fails.
  """
  if pytestconfig.getoption('--parity'):
    return importlib.import_module
  return pytest.importorskip


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The folder of real data sets: `$MMLM_DATA`, or `../shared/data` beside the project."""
  folder = pathlib.Path(os.environ.get('MMLM_DATA', ROOT.parent / 'shared' / 'data'))
  if not folder.is_dir():
    pytest.skip(f'no real data at {folder}: set MMLM_DATA to test on it')
  return folder


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of the toy from start to end, not interrupted."""
  from toy_run import Toy

  return Toy(tmp_path_factory.mktemp('whole') / 'run').train()


@pytest.fixture
def copy(whole, tmp_path):
  """A copy of that run, to be damaged."""
  shutil.copytree(whole.folder, tmp_path / 'copy')
  return tmp_path / 'copy'
