"""Sources of a user's own files, by the name in data.name.

A new source is a class (see `Source`) and one line in `SOURCES`, which maps names to functions that
open a split.
"""

from collections.abc import Callable

from mmlm.data.sources.manifest import open_manifest
from mmlm.data.sources.parallel_text import open_parallel_texts
from mmlm.data.sources.plain_text import open_plain_texts
from mmlm.data.sources.source import Source, SplitRequest

SOURCES: dict[str, Callable[[SplitRequest], Source]] = {
  'manifest': open_manifest,
  'parallel': open_parallel_texts,
  'text': open_plain_texts,
}
