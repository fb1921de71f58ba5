"""The one exception that is meant for people: `main` prints its text without a traceback and exits with code 2."""

import contextlib
import errno
import re


class UserError(Exception):
  """Bad input: says which file, line, key or value was wrong, and what to do."""


@contextlib.contextmanager
def disk_errors(folder, state: str):
  """Turns a full disk into a message; `state` says what became of what was being written."""
  try:
    yield
  except Exception as error:  # orbax and tensorstore have their own kinds
    if getattr(error, 'errno', None) not in (errno.ENOSPC, errno.EDQUOT) and not re.search(
      'No space left|RESOURCE_EXHAUSTED', str(error)
    ):
      raise
    raise UserError(
      f'no space left on the disk of {folder}: {state}. Free some space and start the same command again: it goes on from the last one.'
    ) from None
