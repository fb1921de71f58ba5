"""METEOR 1.5 by its own Java program, which is part of the package pycocoevalcap.

Both are optional.

The program aligns; the formula on top of its counts is here, so that bootstrap intervals need no
second run.
"""

import importlib.util
import pathlib
import shutil
import subprocess

import numpy as np
from numpy.typing import NDArray

from mmlm.evaluation.metrics.metric import Unavailable

# Denkowski and Lavie 2014, English; STAGES weigh exact, stem, synonym and paraphrase matches.
ALPHA = 0.85
BETA = 0.2
GAMMA = 0.6
DELTA = 0.75
STAGES = np.array([1, 0.6, 0.8, 0.6])
COUNTS = 23  # that the program prints for a sentence


def meteor_statistics(hypotheses: list[list[str]], references: list[list[list[str]]]) -> NDArray:
  """Returns the aligner's counts of each example, [N, 23].

  Raises:
    Unavailable: Java or pycocoevalcap is missing, or the program fails.
  """
  lines = []
  for hypothesis, group in zip(hypotheses, references, strict=True):
    texts = [_text(reference) for reference in group]
    lines.append(' ||| '.join(['SCORE', *texts, _text(hypothesis)]) + '\n')
  done = subprocess.run(
    _command(),
    input=''.join(lines),
    capture_output=True,
    text=True,
    encoding='utf-8',
  )
  output = done.stdout.splitlines()
  if done.returncode or len(output) != len(lines):
    raise Unavailable(f'METEOR is left out: its program failed: {done.stderr.strip()[-200:]}')
  counts = np.array([line.split() for line in output], float).reshape(len(lines), COUNTS)
  # The program counts no chunk for a sentence that matches as a whole, in sums too.
  all_matched = (counts[:, 21:] == counts[:, :2]).all(-1)
  counts[all_matched & (counts[:, 20] == 1), 20] = 0
  return counts


def _text(tokens: list[str]) -> str:
  return ' '.join(tokens).replace('|||', '')


def _command() -> list[str]:
  package = importlib.util.find_spec('pycocoevalcap')
  if package is None or not package.submodule_search_locations:
    raise Unavailable('METEOR is left out: `pip install pycocoevalcap==1.2` to have it')
  if not shutil.which('java'):
    raise Unavailable('METEOR is left out: it needs Java, and there is no `java` on the PATH')
  jar = pathlib.Path(package.submodule_search_locations[0], 'meteor', 'meteor-1.5.jar')
  return ['java', '-Xmx2G', '-jar', str(jar), '-', '-', '-stdio', '-l', 'en', '-norm']


def meteor_value(sums: NDArray) -> NDArray:
  """Returns the weighted F mean, less a penalty for fragments (Denkowski and Lavie 2014).

  Args:
    sums: [..., 23].
  """
  lengths = sums[..., :2]
  function_words = sums[..., 2:4]
  stages = sums[..., 4:20]
  chunks = sums[..., 20]
  matched = sums[..., 21:23]
  content_words = lengths - function_words
  # [..., 2]: hypothesis, reference
  weighted = DELTA * content_words + (1 - DELTA) * function_words
  by_stage = stages.reshape(*stages.shape[:-1], 4, 2, 2)  # stage, kind of word, side
  of_kinds = np.array([DELTA, 1 - DELTA])
  matches = np.einsum('...skh,s,k->...h', by_stage, STAGES, of_kinds)
  ratio = _divide(matches, weighted)
  precision = ratio[..., 0]
  recall = ratio[..., 1]
  mean = _divide(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
  fragments = _divide(2 * chunks, matched.sum(-1))
  return mean * (1 - GAMMA * fragments**BETA)


def _divide(numerator: NDArray, denominator: NDArray) -> NDArray:
  """Returns 0 where the denominator is 0."""
  zeros = np.zeros_like(numerator)
  return np.divide(
    numerator,
    denominator,
    out=zeros,
    where=denominator > 0,
  )
