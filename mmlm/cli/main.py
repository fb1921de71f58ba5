"""Dispatch: the commands and their flags stand in command_line.py."""

import errno
import importlib
import os
import sys

from absl import flags, logging

from mmlm.cli.flags import COMMANDS, parse
from mmlm.utils.errors import UserError

# Programs compiled once start at once the next time.
COMPILATION_CACHE = {
  'JAX_COMPILATION_CACHE_DIR': os.path.abspath('.cache/jax'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}


def main():
  try:
    command, arguments = parse(sys.argv)
    flags.FLAGS.mark_as_parsed()  # Grain reads a flag when it starts workers
    logging.set_verbosity(logging.FATAL)  # orbax logs the traceback of every error that it raises
    for name, value in COMPILATION_CACHE.items():
      os.environ.setdefault(name, value)
    # Imports jax, which --help and wrong flags need not wait for.
    module = importlib.import_module(f'mmlm.{COMMANDS[command][0]}')
    getattr(module, command)(**arguments)
  except UserError as error:
    print(f'mmlm: {error}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:  # `| head` has read enough; what is left in the buffer has nowhere to go
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      if error.filename:
        where = f' ({error.filename})'
      else:
        where = ''
      print(
        f'mmlm: no space left on the disk{where}. Nothing that was whole is lost.', file=sys.stderr
      )
    elif error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
      print(f'mmlm: {error.filename}: {error.strerror}.', file=sys.stderr)
    else:
      raise
    sys.exit(2)


if __name__ == '__main__':
  main()
