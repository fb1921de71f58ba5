"""What a data set of ours states of itself."""

import pathlib
from collections.abc import Iterable
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from mmlm.utils.errors import UserError


class DatasetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder; a subclass and a line in `DATASETS` are a data set.

  Attributes:
    FIELDS: {our field: feature} of an example, where the config names none.
    HOW: how to get the original files; '' for a generated set, which needs none.
    FOLDER: the folder of the original files in $MMLM_DATA; '' = the name of the set.
    skipped: ids of the examples that were left out because their files are broken.
  """

  VERSION = tfds.core.Version('1.0.0')
  FIELDS: ClassVar[dict[str, str]]
  HOW: ClassVar[str] = ''
  FOLDER: ClassVar[str] = ''

  def __init__(self, **options: Any):
    self.skipped: list[str] = []
    super().__init__(**options)

  @classmethod
  def check_features(
    cls,
    form: str,
    features: Iterable[str],
  ) -> None:
    """Raises UserError for features that a form of the set (what stands behind '/') lacks."""

  @property
  def form(self) -> str:
    """The form of the set that is built; '' where there is only one."""
    config = self.builder_config
    return config.name if config else ''


class SourceDatasetBuilder(DatasetBuilder, skip_registration=True):
  """A data set that is built from its original files.

  Args:
    source: folder of the original files.
    skip_broken: leave out, and count, examples whose files cannot be read.
  """

  def __init__(self, *, source: str | pathlib.Path, skip_broken: bool = False, **options: Any):
    self.source = pathlib.Path(source)
    self.skip_broken = skip_broken
    super().__init__(**options)

  def find(self, *names: str, endings: tuple[str, ...] = ('',)) -> pathlib.Path:
    """Returns the first file of the source with one of the names and endings.

    Raises:
      UserError: there is none.
    """
    for name in names:
      for ending in endings:
        path = self.source / f'{name}{ending}'
        if path.is_file():
          return path
    raise UserError(f'{self.source}: no {names[0]}.\n{self.HOW}')
