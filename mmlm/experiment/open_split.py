"""Opens the raw examples of a split."""

from typing import Any

from mmlm.data.datasets import preparation
from mmlm.data.sources.manifest import ManifestSource, check_files
from mmlm.data.sources.parallel_text import ParallelTexts
from mmlm.data.sources.plain_text import PlainTexts


def open_split(
  data: Any, split: str, modalities: tuple[str, ...], required: tuple[str, ...]
) -> Any:
  """Opens the raw examples of a split, named as in the data set.

  Args:
    data: the section `data` of a config.
    modalities: fields whose files are checked; broken ones are an error or left out.
    required: fields that every line of a manifest must have.
  """
  if data.name == 'parallel':
    return ParallelTexts(split, data.fields.to_dict())
  if data.name == 'text':
    return PlainTexts(split, data.fields.to_dict())
  if data.name == 'manifest':
    source = ManifestSource(split, require=required)
    return check_files(source, data.dir, data.skip_broken, modalities)
  return preparation.open_source(
    data.name, data.dir, split, data.fields.to_dict(), data.source, data.skip_broken
  )
