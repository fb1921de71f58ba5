"""Prepared data: a TFDS folder `<data_dir>/<name>/<version>`, built once, whole or not at all."""

import contextlib
import dataclasses
import difflib
import errno
import fcntl
import io
import os
import pathlib
import shutil
import sys
import time

import tensorflow_datasets as tfds

from mmlm.data.datasets import flickr8k, unicode_pictures
from mmlm.data.sources import TfdsSource
from mmlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Card:
  """How a data set of ours is made and read."""
  builder: type
  fields: dict  # the fields of an example, if the caller names none
  how: str = ''  # what a person does to get the source; empty: generated, there is no source


DATASETS = {
    'unicode_pictures': Card(unicode_pictures.UnicodePictures,
                             {'id': 'id', 'image': 'image', 'targets': 'caption'}),
    'flickr8k': Card(flickr8k.Flickr8k,
                     {'id': 'id', 'image': 'image', 'targets': 'captions_en'}, flickr8k.HOW),
}


def open_source(name: str, data_dir, split: str, fields: dict | None = None) -> TfdsSource:
  """A split of one of DATASETS (built now if it is not there and can be), or of any TFDS folder under
  data_dir ('mnist', 'x/config').
  """
  card = DATASETS.get(name.partition('/')[0])
  folder = prepare(name, None, data_dir) if card else _newest(name, pathlib.Path(data_dir))
  if not (fields := fields or card and card.fields):
    raise UserError(f'{folder}: say which fields to read, for example '
                    "fields={'image': 'image', 'targets': 'captions/text'}.")
  return TfdsSource(folder, split, fields)


def prepare(name: str, source_dir, data_dir, skip_broken=False) -> pathlib.Path:
  """The folder of the data set `name` ('flickr8k', 'unicode_pictures/tiny'), built when it is not there.

  Without `source_dir`, `$MMLM_DATA/<name>` is the source. One process builds at a time, others wait for it.
  Raises UserError when there is no source, the source is bad, or the disk is full; nothing is left behind
  then.
  """
  data_dir = pathlib.Path(data_dir).expanduser()
  name, _, config = name.partition('/')
  if name not in DATASETS:
    raise UserError(_unknown(name, data_dir))
  card = DATASETS[name]
  configs = list(card.builder.builder_configs)
  if config and config not in configs:
    raise UserError(f'{name} has no form {config!r}; there are: {", ".join(configs) or "none"}.')
  folder = data_dir.joinpath(name, config or (configs[0] if configs else ''), str(card.builder.VERSION))
  if _complete(folder):
    return folder
  options = {'config': folder.parent.name} if configs else {}
  if card.how:
    options |= {'source': _source(name, card, source_dir), 'skip_broken': skip_broken}
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    with _only_one(data_dir / f'.{name}.lock', name):
      if not _complete(folder):
        _build(card.builder, options, folder, data_dir / f'.building-{name}')
  except (OSError, RuntimeError) as error:  # the array_record writer has its own words for a full disk
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
    if full or any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
      raise UserError(f'{data_dir}: the disk is full, {name} was not prepared. Free some space, or choose '
                      'another data folder.') from None
    if not isinstance(error, OSError):
      raise
    raise UserError(f"{data_dir}: can't prepare {name} here ({error}).") from None
  return folder


def _complete(folder):
  return (folder / 'dataset_info.json').is_file()


def _source(name, card, source_dir):
  source = source_dir or os.environ.get('MMLM_DATA') and os.path.join(os.environ['MMLM_DATA'], name)
  if source_dir and not os.path.isdir(source_dir):
    raise UserError(f'{source_dir}: no such folder.\n{card.how}')
  if not source or not os.path.isdir(source):
    raise UserError(f'The data set {name} is not prepared, its source not found ($MMLM_DATA/{name}).\n'
                    f'{card.how}')
  return source


@contextlib.contextmanager
def _only_one(path, name):
  """Holds the lock file; the system lets go of it when a process dies."""
  with open(path, 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f'another process prepares {name}: waiting for it', file=sys.stderr)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _build(builder_class, options, folder, temporary):
  """Builds into `temporary` (under the lock, so what lies there was left by a killed process) and renames
  it to `folder`.
  """
  shutil.rmtree(temporary, ignore_errors=True)
  start = time.monotonic()
  print(f'preparing {folder}', file=sys.stderr)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces downloads that do not happen
      builder = builder_class(data_dir=str(temporary), file_format='array_record', **options)
      builder.download_and_prepare()
    sizes = {split: len(builder.as_data_source(split)) for split in builder.info.splits}
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(builder.data_path, folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  counts = ', '.join(f'{split} {size}' for split, size in sizes.items())
  skipped = f'; left out {len(builder.skipped)}' if getattr(builder, 'skipped', None) else ''
  print(f'prepared in {time.monotonic() - start:.0f} s: {counts}{skipped}', file=sys.stderr)


def _newest(name, data_dir):
  """The newest version of a TFDS folder under data_dir."""
  versions = [path.parent for path in (data_dir / name).glob('*/dataset_info.json')]
  if _complete(data_dir / name):
    return data_dir / name
  if not versions:
    raise UserError(_unknown(name, data_dir))
  return max(versions, key=lambda path: [int(part) for part in path.name.split('.') if part.isdigit()])


def _unknown(name, data_dir):
  found = [path for depth in ('*/*', '*/*/*') for path in data_dir.glob(f'{depth}/dataset_info.json')]
  there = sorted(str(path.parent.parent.relative_to(data_dir)) for path in found)
  near = difflib.get_close_matches(name, [*DATASETS, *there], 1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  return (f'No data set {name!r}.{hint} Ours: {", ".join(DATASETS)}. Prepared in {data_dir}: '
          f'{", ".join(there) or "none"}. '
          "A set of the TFDS catalogue must lie there prepared with file_format='array_record'.")
