"""The run folder: who writes which file, and how to read it.

    runs/x/config.json            the whole config                              training, at start
           environment.json       versions, devices, commit, command            training, at every start
           metrics.jsonl          one object a line, {"step", "kind", ...}      training
           tensorboard/           the same as event files                       training
           tokenizer.json         trained with the run                          training, at first start
           vocabulary.json        words and their counts, for word vectors      the same
           checkpoints/<step>/    state, position and their checksums           training; damaged-<step> could not be read
           status.json            running, and how it ended                     training
           .lock                  locked as long as the process lives           training
           predictions/<name>.jsonl   every hypothesis                          evaluation
           scores/<name>.json         every metric with its interval            evaluation; for word vectors similarity-<step>.json
           ablation/<split>.json      the same with inputs changed              ablation
           report.html            the page to look at; comparison.html of several   report
           export/                the model for others (weights.py)             export

<name> is <split>-<step>, then -<method> when it is not the config's, then -shuffled for inputs given to the wrong examples,
or the condition of an ablation.

Every file is written whole or not at all; metrics.jsonl grows by whole lines.
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
import pathlib
import platform
import re
import tempfile
import time

from mmlm.utils.errors import UserError

LOCK = '.lock'
STATUS = 'status.json'
INHERITED = 'MMLM_LOCK'  # the number of an open, locked file that this process was started with
# <split>-<step>, then -<method> when it is not the config's and where the texts are from that were read in place of the split's (a cascade);
# what has more in its name is decoded with changed inputs.
PREDICTIONS = re.compile(
  r'(?P<split>.+?)-(?P<step>\d+)(?:-(?P<method>greedy|sample|beam))?(?:-text_from_(?P<texts>.+)(?<!-shuffled))?'
)


def predictions(folder) -> list[tuple[re.Match, pathlib.Path]]:
  """What `evaluate` wrote for a run's splits as they are, without cascades: (match of PREDICTIONS, file)."""
  named = []
  for path in pathlib.Path(folder, 'predictions').glob('*.jsonl'):
    named.append((PREDICTIONS.fullmatch(path.stem), path))
  return [(match, path) for match, path in named if match and not match['texts']]


@contextlib.contextmanager
def atomic_file(path):
  """A binary file that becomes `path` when the block ends well, and nothing otherwise (renamed in its own folder).

  What a killed writer of the same file left is removed first.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  _clear(path)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
  try:
    with os.fdopen(handle, 'wb') as file:
      with contextlib.suppress(OSError):  # some network file systems have no locks
        fcntl.flock(handle, fcntl.LOCK_EX)  # held as long as this process writes, gone with it
      yield file
      file.flush()
      os.fsync(file.fileno())
      os.chmod(temporary, 0o644)
      os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise


def _clear(path: pathlib.Path):
  """Removes the temporary files of `path` that no living process holds."""
  for left in path.parent.glob(f'.{glob.escape(path.name)}.*.tmp'):
    with (
      contextlib.suppress(OSError),
      open(left, 'rb') as file,
    ):  # OSError: it is held, or was just removed by another
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      left.unlink()


def write_atomic(path, content: str | bytes):
  """Writes `content` to `path` whole or not at all."""
  with atomic_file(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


def write_json(path, value):
  write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')


def read_json(path):
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise UserError(
      f'{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}).'
    ) from None
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: byte {error.start} is not UTF-8.') from None


def write_jsonl(path, rows):
  write_atomic(path, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))


def read_jsonl(path) -> list:
  """Rows of a JSON-lines file; a last line without its newline (a writer was killed) is left out."""
  with open(path, encoding='utf-8') as file:
    return [json.loads(line) for line in file if line.endswith('\n')]


def refuse_foreign(folder, marker: str, what: str):
  """UserError where a folder holds something, and not a `what`, which would have a file called `marker`."""
  folder = pathlib.Path(folder)
  if (
    folder.is_dir()
    and not (folder / marker).exists()
    and any(path.name != LOCK for path in folder.iterdir())
  ):
    raise UserError(
      f'{folder} is not empty and holds no {what} (no {marker}). Give another --workdir.'
    )


class Busy(UserError):
  """A folder that another process works in."""


def lock(folder):
  """Locks a folder for this process. Returns the open file: the lock ends when it is closed or the process ends, however it does.

  Raises:
    Busy: another process has it; it is named.
  """
  path = pathlib.Path(folder, LOCK)
  with contextlib.suppress(FileExistsError):  # a file; what opens it says so
    path.parent.mkdir(parents=True, exist_ok=True)
  file = _inherited(path) or open(path, 'a+', encoding='utf-8')  # noqa: SIM115 open as long as it is locked
  for wait in (0.05, 0.1, 0.2, None):  # who only looks (`is_locked`) is done at once
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        break  # a file system without locks
      if wait is None:
        file.seek(0)
        who = file.read().strip() or 'another process'
        file.close()
        raise Busy(
          f'{folder} is in use: {who} works in it. Wait for it, stop it, or give another --workdir.'
        ) from None
      time.sleep(wait)
    else:
      break
  file.truncate(0)
  file.write(f'process {os.getpid()} on {platform.node()}')
  file.flush()
  return file


def _inherited(path):
  """The lock file that a sweep locked before it started this process, if it is that of `path`."""
  number = int(os.environ.get(INHERITED, -1))
  try:
    if number < 0 or not os.path.samestat(os.fstat(number), os.stat(path)):
      return None
  except OSError:
    return None
  os.set_inheritable(number, False)
  return open(number, 'a+', encoding='utf-8')


def is_locked(folder) -> bool:
  """Whether a process works in a folder."""
  try:
    with open(pathlib.Path(folder, LOCK), encoding='utf-8') as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except OSError as error:
    return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
  return False


def write_status(folder, state: str, total: int, error: str = ''):
  """What status.json tells: 'running', and at the end 'done', 'interrupted', 'pruned', 'diverged' or 'failed' with the error."""
  write_json(pathlib.Path(folder, STATUS), {'state': state, 'total': total, 'error': error})


@contextlib.contextmanager
def watched(folder, total: int):
  """Keeps status.json: what the block raises may name its `state`, else it is 'failed'."""
  write_status(folder, 'running', total)
  try:
    yield
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt):
      state = 'interrupted'
    else:
      state = getattr(error, 'state', 'failed')
    with contextlib.suppress(OSError):  # a full disk has been told of
      write_status(folder, state, total, str(error) or type(error).__name__)
    raise
  write_status(folder, 'done', total)
