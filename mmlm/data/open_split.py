"""Opens the raw examples of a split."""

from ml_collections import ConfigDict

from mmlm.data.datasets.preparation import open_source
from mmlm.data.sources import SOURCES
from mmlm.data.sources.source import Source, SplitRequest


def open_split(
  data: ConfigDict, split: str, modalities: tuple[str, ...], required: tuple[str, ...]
) -> Source:
  """Opens the raw examples of a split, named as in the data set.

  Args:
    data: the section `data` of a config.
    modalities: fields whose files are checked; broken ones are an error or left out.
    required: fields that every line of a manifest must have.
  """
  fields = data.fields.to_dict()
  if data.name in SOURCES:
    request = SplitRequest(split, fields, modalities, required, data.dir, data.skip_broken)
    return SOURCES[data.name](request)
  return open_source(data.name, data.dir, split, fields, data.source, data.skip_broken)
