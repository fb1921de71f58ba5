"""The exception for users: `main` prints its text without a traceback and exits with code 2."""

import contextlib
import errno
import pathlib
import re
from collections.abc import Iterator

NO_SPACE = re.compile('No space left|RESOURCE_EXHAUSTED')


class UserError(Exception):
  """Bad input: says which file, line, key or value is wrong, and what to do."""


@contextlib.contextmanager
def disk_errors(folder: str | pathlib.Path, state: str) -> Iterator[None]:
  """Turns a full disk into a UserError.

  Args:
    state: what happened to the files being written, for the message.
  """
  try:
    yield
  except Exception as error:  # orbax and tensorstore have exceptions of their own
    if not _is_full_disk(error):
      raise
    raise UserError(
      f'no space left on the disk of {folder}: {state}. Free some space and start the same command '
      'again: it resumes from the last one.'
    ) from None


def _is_full_disk(error: Exception) -> bool:
  number = getattr(error, 'errno', None)
  return number in (errno.ENOSPC, errno.EDQUOT) or bool(NO_SPACE.search(str(error)))
