"""Reading predictions files: JSON lines with id, references and hypothesis."""

import pathlib

from mmlm.utils import run_dir
from mmlm.utils.errors import UserError


def read_predictions(path: str | pathlib.Path) -> dict[str, dict]:
  """Returns {id: prediction} of a predictions file.

  Raises:
    UserError: the file cannot be read, is empty, or an id is repeated or has no references.
  """
  try:
    predictions = run_dir.read_jsonl(path)
    by_id = {}
    for prediction in predictions:
      if prediction['references'] and isinstance(prediction['hypothesis'], str):
        by_id[prediction['id']] = prediction
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}.') from None
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path}: not a predictions file, whose lines have id, references and hypothesis ({error!r}).'
    ) from None
  if not predictions or len(by_id) < len(predictions):
    raise UserError(
      f'{path}: {len(predictions)} lines, of which {len(by_id)} have a unique id and references.'
    )
  return by_id


def find_predictions(place: str, split: str) -> pathlib.Path:
  """Returns `place` if it is a file, else the predictions of a run folder.

  Of several the newest step is taken, and of that step the one decoded as the config says.
  """
  path = pathlib.Path(place)
  if path.is_file():
    return path
  if not path.is_dir():
    raise UserError(f'{place}: no such run folder or predictions file.')
  candidates = []
  for match, file in run_dir.predictions(path):
    if not split or match['split'] == split:
      candidates.append((int(match['step']), match['method'] is None, match['split'], file))
  if not candidates:
    of_split = f' of {split!r}' if split else ''
    raise UserError(
      f'{place}: no predictions{of_split}. `./launch.sh evaluate {place}` writes them.'
    )
  splits = sorted({candidate[2] for candidate in candidates})
  if len(splits) > 1:
    raise UserError(f'{place} holds predictions of {", ".join(splits)}: choose one by --split.')
  return max(candidates)[-1]
