"""The run folder: who writes which file, and functions to read and write them.

    runs/x/config.json            the whole config                         training, at start
           environment.json       versions, devices, commit, command       training, at every start
           metrics.jsonl          a line a record, {"step", "kind", ...}   training
           tensorboard/           the same as event files                  training
           tokenizer.json         trained with the run                     training, at first start
           vocabulary.json        words and their counts, of word vectors  training, at first start
           checkpoints/<step>/    state, position, checksums               training
           checkpoints/damaged-<step>/   a step that cannot be read        training
           status.json            'running', and how the run ended         training
           .lock                  locked while the process lives           training
           predictions/<name>.jsonl   every hypothesis                     evaluation
           scores/<name>.json     every metric with its interval           evaluation
           scores/similarity-<step>.json   of word vectors                 evaluation
           ablation/<split>.json  scores with changed inputs               ablation
           report.html, comparison.html   of one run, of several           report
           export/                the model (exported_weights.py)          export

<name> is <split>-<step>, then -<method> if it is not the config's, then -shuffled for inputs given
to the wrong examples, or the condition of an ablation.

Every file is written completely or not at all; metrics.jsonl grows by complete lines.
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
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TextIO

from mmlm.utils.errors import UserError

Path = str | pathlib.Path

LOCK = '.lock'
STATUS = 'status.json'
INHERITED = 'MMLM_LOCK'  # environment variable: number of a locked file opened by the parent
# <split>-<step>, then -<method> if it is not the config's, then the run whose texts were read in
# place of the split's (a cascade). Longer names are of changed inputs.
PREDICTIONS = re.compile(
  r'(?P<split>.+?)-(?P<step>\d+)'
  r'(?:-(?P<method>greedy|sample|beam))?'
  r'(?:-text_from_(?P<texts>.+)(?<!-shuffled))?'
)
LOCK_WAITS = (0.05, 0.1, 0.2)  # seconds; a process that only checks a lock holds it for less


def predictions(folder: Path) -> list[tuple[re.Match, pathlib.Path]]:
  """Returns the predictions for unchanged splits of a run: (match of PREDICTIONS, file)."""
  result = []
  for path in pathlib.Path(folder, 'predictions').glob('*.jsonl'):
    match = PREDICTIONS.fullmatch(path.stem)
    if match and not match['texts']:
      result.append((match, path))
  return result


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
  """Yields a binary file that is renamed to `path` if the block succeeds, and removed otherwise.

  Temporary files of killed writers of the same file are removed first.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  _clear(path)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
  try:
    with os.fdopen(handle, 'wb') as file:
      with contextlib.suppress(OSError):  # some network file systems have no locks
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when this process ends
      yield file
      file.flush()
      os.fsync(file.fileno())
      os.chmod(temporary, 0o644)
      os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise


def _clear(path: pathlib.Path) -> None:
  """Removes the temporary files of `path` whose writers are dead."""
  for temporary in path.parent.glob(f'.{glob.escape(path.name)}.*.tmp'):
    # OSError: it is locked, or another process has removed it.
    with contextlib.suppress(OSError), open(temporary, 'rb') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      temporary.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
  """Writes a file completely or not at all."""
  if isinstance(content, str):
    content = content.encode()
  with atomic_file(path) as file:
    file.write(content)


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file."""
  write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')


def read_json(path: Path) -> Any:
  """Reads a JSON file; UserError with line and column if it is not JSON."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise UserError(
      f'{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}).'
    ) from None
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: byte {error.start} is not UTF-8.') from None


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
  """Writes a JSON-lines file."""
  lines = [json.dumps(record, ensure_ascii=False) + '\n' for record in records]
  write_atomic(path, ''.join(lines))


def read_jsonl(path: Path) -> list:
  """Reads a JSON-lines file, without a last line that a killed writer did not finish."""
  with open(path, encoding='utf-8') as file:
    return [json.loads(line) for line in file if line.endswith('\n')]


def refuse_foreign(folder: Path, marker: str, what: str) -> None:
  """Raises UserError if a folder has files, but not the file `marker` that every `what` has."""
  folder = pathlib.Path(folder)
  if not folder.is_dir() or (folder / marker).exists():
    return
  if any(path.name != LOCK for path in folder.iterdir()):
    raise UserError(
      f'{folder} is not empty and holds no {what} (no {marker}). Give another --workdir.'
    )


class Busy(UserError):
  """Another process works in the folder."""


def lock(folder: Path) -> TextIO:
  """Locks a folder for this process, until the returned file is closed or the process ends.

  Raises:
    Busy: another process has locked it; names that process.
  """
  path = pathlib.Path(folder, LOCK)
  with contextlib.suppress(FileExistsError):  # a file, about which `open` raises
    path.parent.mkdir(parents=True, exist_ok=True)
  file = _inherited(path) or open(path, 'a+', encoding='utf-8')  # noqa: SIM115 open while locked
  for wait in (*LOCK_WAITS, None):
    if _try_lock(file):
      break
    if wait is None:
      file.seek(0)
      owner = file.read().strip() or 'another process'
      file.close()
      raise Busy(
        f'{folder} is in use: {owner} works in it. Wait for it, stop it, or give another --workdir.'
      )
    time.sleep(wait)
  file.truncate(0)
  file.write(f'process {os.getpid()} on {platform.node()}')
  file.flush()
  return file


def _try_lock(file: TextIO) -> bool:
  """Locks a file, if its file system has locks; False if another process has locked it."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    return not _is_held(error)
  return True


def _is_held(error: OSError) -> bool:
  return error.errno in (errno.EWOULDBLOCK, errno.EACCES)


def _inherited(path: pathlib.Path) -> TextIO | None:
  """Returns the lock file that a sweep locked before it started this process, if it is `path`."""
  number = int(os.environ.get(INHERITED, -1))
  try:
    if number < 0 or not os.path.samestat(os.fstat(number), os.stat(path)):
      return None
  except OSError:
    return None
  os.set_inheritable(number, False)
  return open(number, 'a+', encoding='utf-8')


def is_locked(folder: Path) -> bool:
  """Whether a process works in a folder."""
  try:
    with open(pathlib.Path(folder, LOCK), encoding='utf-8') as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except OSError as error:
    return _is_held(error)
  return False


def write_status(folder: Path, state: str, total: int, error: str = '') -> None:
  """Writes status.json.

  Args:
    state: 'running', 'done', 'interrupted', 'pruned', 'diverged' or 'failed'.
    total: steps of the run.
  """
  write_json(pathlib.Path(folder, STATUS), {'state': state, 'total': total, 'error': error})


@contextlib.contextmanager
def watched(folder: Path, total: int) -> Iterator[None]:
  """Writes status.json at the start and the end of the block.

  An exception of the block may name its `state`; otherwise it is 'failed'.
  """
  write_status(folder, 'running', total)
  try:
    yield
  except BaseException as error:
    state = getattr(error, 'state', 'failed')
    if isinstance(error, KeyboardInterrupt):
      state = 'interrupted'
    with contextlib.suppress(OSError):  # a full disk, which is reported elsewhere
      write_status(folder, state, total, str(error) or type(error).__name__)
    raise
  write_status(folder, 'done', total)
