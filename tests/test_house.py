"""The layout of the package: rooms only at the top, and a file name that stands once."""

import collections
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_package_has_no_loose_modules():
  modules = {path.name for path in (ROOT / 'mmlm').glob('*.py')}
  assert modules == {'__init__.py', '__main__.py'}


def test_a_file_name_stands_once_in_the_package():
  names = collections.Counter(path.name for path in (ROOT / 'mmlm').rglob('*.py'))
  del names['__init__.py']
  assert [name for name, count in names.items() if count > 1] == []


def test_the_tests_mirror_the_rooms():
  rooms = {path.name for path in (ROOT / 'mmlm').iterdir() if path.is_dir()}
  folders = {path.parent.name for path in (ROOT / 'tests').glob('*/test_*.py')}
  assert folders <= rooms | {'experiments'}
