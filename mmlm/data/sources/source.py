"""What every source of examples declares.

An example is a dict: {'id': str, 'image': bytes (encoded), 'text': str, 'targets': tuple[str, ...],
'label': int | float, ...}; a field that an example lacks is absent.
"""

from typing import Any, NamedTuple, Protocol


class Source(Protocol):
  """The examples of a split, by random access; it can be pickled for loader processes."""

  @property
  def identity(self) -> str:
    """Changes with the contents of the split; '' if nothing may be cached for it."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> dict[str, Any]: ...


class SplitRequest(NamedTuple):
  """What is opened, from the section `data` of a config.

  Attributes:
    split: name of a split, or a path.
    fields: what examples are made of, by the rules of the source.
    modalities: fields whose files are checked.
    required: fields that every example must have.
    cache_dir: folder for what is computed of the data.
    skip_broken: leave out examples that cannot be read; otherwise they are an error.
  """

  split: str
  fields: dict[str, str]
  modalities: tuple[str, ...] = ()
  required: tuple[str, ...] = ()
  cache_dir: str = 'data'
  skip_broken: bool = False
