"""Prepared data: a TFDS folder `<data_dir>/<name>/<version>`, built once, whole or not at all."""

import contextlib
import errno
import fcntl
import io
import os
import pathlib
import shutil
import sys

import tensorflow_datasets as tfds

from mmlm.data.datasets.flickr8k import Flickr8k
from mmlm.data.datasets.keypad_tones import KeypadTones
from mmlm.data.datasets.mosi import Mosi
from mmlm.data.datasets.multi30k import Multi30k
from mmlm.data.datasets.numerals import Numerals
from mmlm.data.datasets.sentences import Mr, Sst2, Vader
from mmlm.data.datasets.sounds import An4, Fsdd, Mboshi
from mmlm.data.datasets.speech_folders import Covost, LibriSpeech
from mmlm.data.datasets.texts import Brown, TinyShakespeare
from mmlm.data.datasets.three_modalities import ThreeModalities
from mmlm.data.datasets.unicode_pictures import UnicodePictures
from mmlm.data.sources.tfds_source import TfdsSource
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

# Our builders. FIELDS: what an example is made of if the caller does not say; HOW: how a person gets the source, empty
# where there is none because the set is generated; FOLDER: where in $MMLM_DATA the source is, if not under the set's name.
BUILDERS = (
  UnicodePictures,
  Flickr8k,
  Multi30k,
  Numerals,
  Sst2,
  Mr,
  Vader,
  Mosi,
  ThreeModalities,
  KeypadTones,
  Fsdd,
  An4,
  Mboshi,
  LibriSpeech,
  Covost,
  TinyShakespeare,
  Brown,
)
DATASETS = {builder.name: builder for builder in BUILDERS}


def open_source(
  name, data_dir, split, fields=None, source_dir=None, skip_broken=False
) -> TfdsSource:
  """A split of one of DATASETS (built now if it is not there and can be), or of any TFDS folder under
  data_dir ('mnist', 'x/config').
  """
  short, _, form = name.partition('/')
  if fields and hasattr(DATASETS.get(short), 'refuse'):
    DATASETS[short].refuse(form, fields.values())
  folder = prepare(name, source_dir, data_dir, skip_broken)
  if not (fields := fields or getattr(DATASETS.get(short), 'FIELDS', None)):
    raise UserError(
      f"{folder}: say which fields to read, as in data.fields={{'image': 'image', 'targets': 'captions/text'}}."
    )
  return TfdsSource(folder, split, fields)


def prepare(name: str, source_dir, data_dir, skip_broken=False) -> pathlib.Path:
  """The folder of the data set `name` ('flickr8k', 'unicode_pictures/tiny'), built when it is not there and is ours.

  Without `source_dir`, `$MMLM_DATA/<name>` is the source. One process builds at a time, others wait for it.
  Raises UserError when there is no such set, no source, the source is bad, or the disk is full; nothing is left
  behind then.
  """
  data_dir = pathlib.Path(data_dir).expanduser()
  short, _, config = name.partition('/')
  if short not in DATASETS:
    return _newest(name, data_dir)
  builder = DATASETS[short]
  config = config or next(iter(builder.builder_configs), '')
  if config and config not in builder.builder_configs:
    raise UserError(
      f'{short} has no form {config!r}; there are: {", ".join(builder.builder_configs) or "none"}.'
    )
  folder = data_dir / short / config / str(builder.VERSION)
  done = folder / 'dataset_info.json'
  if done.is_file():
    return folder
  options = {'config': config or None}
  if builder.HOW:
    source = os.path.expandvars(source_dir or f'$MMLM_DATA/{getattr(builder, "FOLDER", short)}')
    if not os.path.isdir(source):
      raise UserError(
        f'{source}: no such folder, and {short} is not prepared in {data_dir}.\n{builder.HOW}'
      )
    options |= {'source': source, 'skip_broken': skip_broken}
  data_dir.mkdir(parents=True, exist_ok=True)
  with open(
    data_dir / f'.{short}.lock', 'w'
  ) as lock:  # the system lets go of it when a process dies
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f'another process prepares {short}: waiting for it', file=sys.stderr)
      fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.is_file():
      _build(builder, options, data_dir, folder)
  return folder


def _build(builder_class, options, data_dir, folder):
  """Builds into `folder`, under the lock: TFDS writes beside it and renames, so other things there are a killed process's."""
  for left in (folder, *folder.parent.glob('incomplete.*')):
    shutil.rmtree(left, ignore_errors=True)
  print(f'preparing {folder}', file=sys.stderr)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces downloads that do not happen
      builder = builder_class(data_dir=str(data_dir), file_format='array_record', **options)
      builder.download_and_prepare()
  except RuntimeError as error:  # the array_record writer has its own words for a full disk
    if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
      raise
    raise UserError(
      f'{folder}: the disk is full, nothing was prepared. Free some, or choose another folder.'
    ) from None
  counts = ', '.join(f'{name} {split.num_examples}' for name, split in builder.info.splits.items())
  if getattr(builder, 'skipped', None):
    skipped = f'; left out {len(builder.skipped)}'
  else:
    skipped = ''
  print(f'prepared: {counts}{skipped}', file=sys.stderr)


def _newest(name, data_dir):
  """The newest version of a TFDS folder `<data_dir>/<name>`; the name may hold a form and a version."""
  found = [
    path.parent
    for depth in ('*/*', '*/*/*')
    for path in data_dir.glob(f'{depth}/dataset_info.json')
  ]
  versions = [folder for folder in found if data_dir / name in (folder, folder.parent)]
  if versions:
    return max(
      versions, key=lambda path: [int(part) for part in path.name.split('.') if part.isdigit()]
    )
  known = [*DATASETS, *sorted({str(folder.parent.relative_to(data_dir)) for folder in found})]
  raise UserError(
    f'No data set {name!r}. Nearest: {nearest(name, known)!r}. Ours, and those prepared in {data_dir}: '
    f"{', '.join(known)}. A set of the TFDS catalogue must lie there prepared with file_format='array_record'."
  )
