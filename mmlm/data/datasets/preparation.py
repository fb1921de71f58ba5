"""Prepared data: a TFDS folder `<data_dir>/<name>/<version>`, built once, whole or not at all."""

import contextlib
import errno
import fcntl
import io
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from mmlm.data.datasets import DATASETS
from mmlm.data.datasets.builder import DatasetBuilder
from mmlm.data.sources.tfds_source import TfdsSource
from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

Path = str | pathlib.Path


def open_source(
  name: str,
  data_dir: Path,
  split: str,
  fields: dict[str, str] | None = None,
  source_dir: Path | None = None,
  skip_broken: bool = False,
) -> TfdsSource:
  """Opens a split of one of DATASETS, built first if needed, or of any TFDS folder in data_dir.

  Args:
    name: such as 'mnist' or 'multi30k/photos'.
    fields: {our field: feature}; by default those of the data set.
    source_dir: folder of the original files.
    skip_broken: leave out examples whose files cannot be read.

  Raises:
    UserError: no such data set or feature.
  """
  short, _, form = name.partition('/')
  builder = DATASETS.get(short)
  if builder and fields:
    builder.check_features(form, fields.values())
  folder = prepare(name, source_dir, data_dir, skip_broken)
  if builder and not fields:
    fields = builder.FIELDS
  if not fields:
    raise UserError(
      f'{folder}: name the fields to read, as in '
      "data.fields={'image': 'image', 'targets': 'captions/text'}."
    )
  return TfdsSource(folder, split, fields)


def prepare(
  name: str, source_dir: Path | None, data_dir: Path, skip_broken: bool = False
) -> pathlib.Path:
  """Returns the folder of a data set, which is built if it is ours and not there yet.

  One process builds at a time, others wait for it.

  Args:
    name: such as 'flickr8k' or 'unicode_pictures/tiny'.
    source_dir: folder of the original files; by default `$MMLM_DATA/<name>`.

  Raises:
    UserError: no such set, no source, a bad source, or a full disk; nothing is left behind then.
  """
  data_dir = pathlib.Path(data_dir).expanduser()
  short, _, form = name.partition('/')
  if short not in DATASETS:
    return _newest_version(name, data_dir)
  builder = DATASETS[short]
  form = _check_form(short, builder, form)
  folder = data_dir / short / form / str(builder.VERSION)
  info = folder / 'dataset_info.json'
  if info.is_file():
    return folder
  options: dict[str, Any] = {'config': form or None}
  if builder.HOW:
    options['source'] = _source_folder(short, builder, source_dir, data_dir)
    options['skip_broken'] = skip_broken
  with _only_builder(data_dir, short):
    if not info.is_file():
      _build(builder, options, data_dir, folder)
  return folder


def _check_form(
  short: str,
  builder: type[DatasetBuilder],
  form: str,
) -> str:
  """Returns the form of a set, by default its first; UserError for one that it lacks."""
  forms = builder.builder_configs
  if form and form not in forms:
    raise UserError(f'{short} has no form {form!r}; there are: {", ".join(forms) or "none"}.')
  return form or next(iter(forms), '')


def _source_folder(
  short: str, builder: type[DatasetBuilder], source_dir: Path | None, data_dir: pathlib.Path
) -> str:
  """Returns the folder of the original files; UserError without one."""
  usual = f'$MMLM_DATA/{builder.FOLDER or short}'
  source = os.path.expandvars(source_dir or usual)
  if not os.path.isdir(source):
    raise UserError(
      f'{source}: no such folder, and {short} is not prepared in {data_dir}.\n{builder.HOW}'
    )
  return source


@contextlib.contextmanager
def _only_builder(data_dir: pathlib.Path, short: str) -> Iterator[None]:
  """Holds the lock of a data set, which the system releases when a process dies."""
  data_dir.mkdir(parents=True, exist_ok=True)
  with open(data_dir / f'.{short}.lock', 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f'another process prepares {short}: waiting for it', file=sys.stderr)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _build(
  builder_class: type[DatasetBuilder],
  options: dict[str, Any],
  data_dir: pathlib.Path,
  folder: pathlib.Path,
) -> None:
  """Builds a data set into `folder`, under the lock.

  TFDS writes beside it and renames, so anything else there is of a process that was killed.
  """
  for leftover in (folder, *folder.parent.glob('incomplete.*')):
    shutil.rmtree(leftover, ignore_errors=True)
  print(f'preparing {folder}', file=sys.stderr)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces downloads that do not happen
      builder = builder_class(data_dir=str(data_dir), file_format='array_record', **options)
      builder.download_and_prepare()
  except RuntimeError as error:
    if not _is_full_disk(error):
      raise
    raise UserError(
      f'{folder}: the disk is full, nothing was prepared. Free some space, or choose another '
      'folder.'
    ) from None
  counts = ', '.join(f'{name} {split.num_examples}' for name, split in builder.info.splits.items())
  if builder.skipped:
    counts += f'; left out {len(builder.skipped)}'
  print(f'prepared: {counts}', file=sys.stderr)


def _is_full_disk(error: RuntimeError) -> bool:
  """Whether the writer of array_record, which raises errors of its own, met a full disk."""
  return any(
    os.strerror(code) in str(error)
    for code in (
      errno.ENOSPC,
      errno.EDQUOT,
    )
  )


def _newest_version(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Returns the newest version of a TFDS folder; the name may hold a form and a version."""
  prepared = []
  for depth in ('*/*', '*/*/*'):
    prepared += [path.parent for path in data_dir.glob(f'{depth}/dataset_info.json')]
  versions = [folder for folder in prepared if data_dir / name in (folder, folder.parent)]
  if versions:
    return max(versions, key=_version_of)
  names = sorted({str(folder.parent.relative_to(data_dir)) for folder in prepared})
  known = [*DATASETS, *names]
  raise UserError(
    f'No data set {name!r}. Nearest: {nearest(name, known)!r}. '
    f'Ours, and those prepared in {data_dir}: {", ".join(known)}. '
    "A set of the TFDS catalogue must be prepared there with file_format='array_record'."
  )


def _version_of(folder: pathlib.Path) -> list[int]:
  return [int(part) for part in folder.name.split('.') if part.isdigit()]
