"""The commands on word vectors: evaluate, similarity, export."""

import pathlib
from typing import Any

from mmlm.config import default_config
from mmlm.pretrained.formats.vector_files import Vectors, read_vectors
from mmlm.pretrained.formats.write_vectors import write_vectors
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError
from mmlm.word_vectors.similarity_scores import Score, score_vectors
from mmlm.word_vectors.vector_experiment import VectorExperiment

MOST_WORDS = 30000  # of the analogies of an evaluation


def evaluate(
  run: str,
  splits: tuple,
  settings: dict[str, str],
  greedy: bool = False,
  text_from: str = '',
) -> list[dict]:
  """Scores a run on the sets of evaluate.similarity; writes scores/similarity-<step>.json."""
  if splits or greedy or text_from:
    raise UserError(
      '--splits, --greedy and --text_from do not apply to word vectors, which decode no split. '
      'The sets are named by evaluate.similarity.'
    )
  return [_score_run(run, '', MOST_WORDS, 'add', settings)]


def similarity(
  vectors: str,
  sets: str,
  restrict: int,
  method: str,
  settings: dict,
) -> dict:
  """Scores the vectors of a file, a package or a run.

  Args:
    sets: a folder or a file; '' = evaluate.similarity of the run's config.
    restrict: words of the analogies, the first ones; 0 = all.
    method: 'add' or 'mul', see `similarity_scores.answers`.
    settings: overrides of the config of a run.
  """
  if pathlib.Path(vectors).is_dir():
    return _score_run(vectors, sets, restrict, method, settings)
  if settings:
    raise UserError(f'{vectors} is not a run folder: it has no config to set.')
  options = default_config().evaluate
  return _score(read_vectors(vectors), vectors, sets, restrict, method, options)


def export(
  run: str,
  output: str,
  format: str,
  settings: dict[str, str],
) -> None:
  """Writes the vectors of a run to a file."""
  if not pathlib.Path(run).is_dir():
    raise UserError(f'{run}: not a run folder.')
  experiment = VectorExperiment.of_run(run, settings)
  vectors, step = experiment.trained_vectors()
  write_vectors(output, experiment.tokenizer.words, vectors.array, format)
  print(f'{output}: {len(vectors.words):,} words, {vectors.width} values each, of step {step}')


def _score_run(
  run: str,
  sets: str,
  restrict: int,
  method: str,
  settings: dict,
) -> dict:
  """Scores the vectors of a run and writes the scores into its folder."""
  experiment = VectorExperiment.of_run(run, settings)
  vectors, step = experiment.trained_vectors()
  options = experiment.config.evaluate
  result = _score(vectors, run, sets, restrict, method, options, step)
  suffix = '' if method == 'add' else f'-{method}'
  run_dir.write_json(experiment.folder / 'scores' / f'similarity-{step}{suffix}.json', result)
  return result


def _score(
  vectors: Vectors,
  name: str,
  sets: str,
  restrict: int,
  method: str,
  options: Any,
  step: int = 0,
) -> dict:
  """Scores vectors, prints the scores and returns the content of a score file."""
  count = len(vectors.words)
  scores = score_vectors(
    vectors, sets or options.similarity, restrict, method, options.bootstrap_samples
  )
  print(
    f'{name}: {count:,} words, {vectors.width} values each; '
    f'analogies among the first {min(restrict or count, count):,} words, '
    f'by 3Cos{method.capitalize()}'
  )
  for metric, score in scores.items():
    print(_line(metric, score))
  return {
    'split': 'similarity',
    'step': step,
    'decoding': {},
    'shuffled': False,
    'n': count,
    'restrict': restrict,
    'scores': scores,
  }


def _line(metric: str, score: Score) -> str:
  return (
    f'  {metric:<44} {score["value"]:.4f}   '
    f'95 % [{score["low"]:.4f}, {score["high"]:.4f}]   {score["n"]:,} of {score["of"]:,} known'
  )
