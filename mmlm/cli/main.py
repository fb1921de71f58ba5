"""Runs the command that the command line names."""

import errno
import importlib
import os
import sys

from absl import flags, logging

from mmlm.cli.command_line import HelpRequested, parse
from mmlm.utils.errors import UserError

# Compiled programs are cached on disk, so that they start at once the next time.
COMPILATION_CACHE = {
  'JAX_COMPILATION_CACHE_DIR': os.path.abspath('.cache/jax'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
BAD_PATH = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


def main() -> None:
  """Runs a command; an error of the user ends with exit code 2 and one message."""
  try:
    run(sys.argv)
  except HelpRequested as help_text:
    print(help_text)
  except UserError as error:
    fail(f'{error}')
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:  # `| head` has ended: discard what is still buffered
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
  except OSError as error:
    if error.errno not in (*DISK_FULL, *BAD_PATH):
      raise
    fail(_describe(error))


def run(argv: list[str]) -> None:
  """Runs the command of `argv`, whose first word is the program."""
  name, options = parse(argv)
  flags.FLAGS.mark_as_parsed()  # Grain reads a flag when it starts workers
  logging.set_verbosity(logging.FATAL)  # orbax logs the traceback of every error that it raises
  for variable, value in COMPILATION_CACHE.items():
    os.environ.setdefault(variable, value)
  # These modules import jax, which --help and wrong flags need not wait for.
  importlib.import_module('mmlm.word_vectors')  # registers its task
  module = importlib.import_module(f'mmlm.cli.{name}')
  command = getattr(module, name)
  command(options)


def fail(message: str) -> None:
  """Prints a message and ends with exit code 2."""
  print(f'mmlm: {message}', file=sys.stderr)
  sys.exit(2)


def _describe(error: OSError) -> str:
  if error.errno in DISK_FULL:
    where = f' ({error.filename})' if error.filename else ''
    return f'no space left on the disk{where}. Completed files are intact.'
  return f'{error.filename}: {error.strerror}.'


if __name__ == '__main__':
  main()
