"""The run folder: who writes which file, and how to read it.

    runs/x/config.json            the whole config                              training, at start
           environment.json       versions, devices, commit, command            training, at every start
           metrics.jsonl          one object a line, {"step", "kind", ...}      training
           tensorboard/           the same as event files                       training
           tokenizer.json         trained with the run                          training, at first start
           checkpoints/<step>/    state, position and their checksums           training; damaged-<step> could not be read
           predictions/<name>.jsonl   every hypothesis                          evaluation
           scores/<name>.json         every metric with its interval            evaluation
           ablation/<split>.json      the same with inputs changed              ablation
           report.html            the page to look at                           report
           export/                the model for others (weights.py)             export

<name> is <split>-<step>, then -<method> when it is not the config's, then -shuffled for inputs given to the wrong examples,
or the condition of an ablation.

Every file is written whole or not at all; metrics.jsonl grows by whole lines.
"""

import contextlib
import fcntl
import glob
import json
import os
import pathlib
import re
import tempfile

from mmlm.errors import UserError

# <split>-<step>, then -<method> when it is not the config's; what has more in its name is decoded with changed inputs.
PREDICTIONS = re.compile(r'(?P<split>.+)-(?P<step>\d+)(?:-(?P<method>greedy|sample|beam))?')


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
    with contextlib.suppress(OSError), open(left, 'rb') as file:  # OSError: it is held, or was just removed by another
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
    raise UserError(f'{path}, line {error.lineno}: not JSON ({error.msg}).') from None


def write_jsonl(path, rows):
  write_atomic(path, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))


def read_jsonl(path) -> list:
  """Rows of a JSON-lines file; a last line without its newline (a writer was killed) is left out."""
  with open(path, encoding='utf-8') as file:
    return [json.loads(line) for line in file if line.endswith('\n')]
