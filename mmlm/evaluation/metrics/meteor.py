"""METEOR 1.5 by its own Java program, which travels in the package pycocoevalcap; both are optional.

The program aligns; the formula on top of its counts is here, so that bootstrap intervals need no second run.
"""

import importlib.util
import pathlib
import shutil
import subprocess

import numpy as np

from mmlm.evaluation.metrics.metric import Unavailable

# Denkowski and Lavie 2014, English; STAGES weigh exact, stem, synonym and paraphrase matches.
ALPHA = 0.85
BETA = 0.2
GAMMA = 0.6
DELTA = 0.75
STAGES = np.array([1, 0.6, 0.8, 0.6])


def meteor_statistics(hypotheses, references) -> np.ndarray:
  """The aligner's 23 counts of each example, [N, 23]; raises Unavailable without Java or pycocoevalcap."""
  if not (package := importlib.util.find_spec('pycocoevalcap')):
    raise Unavailable('METEOR is left out: `pip install pycocoevalcap==1.2` to have it')
  if not shutil.which('java'):
    raise Unavailable('METEOR is left out: it needs Java, and there is no `java` on the PATH')
  jar = pathlib.Path(package.submodule_search_locations[0], 'meteor', 'meteor-1.5.jar')
  command = ['java', '-Xmx2G', '-jar', str(jar), '-', '-', '-stdio', '-l', 'en', '-norm']

  def clean(tokens):
    return ' '.join(tokens).replace('|||', '')

  lines = []
  for hypothesis, group in zip(hypotheses, references, strict=True):
    lines.append(' ||| '.join(['SCORE', *map(clean, group), clean(hypothesis)]) + '\n')
  done = subprocess.run(
    command, input=''.join(lines), capture_output=True, text=True, encoding='utf-8'
  )
  rows = [[float(field) for field in line.split()] for line in done.stdout.splitlines()]
  if done.returncode or len(rows) != len(lines):
    raise Unavailable(f'METEOR is left out: its program failed: {done.stderr.strip()[-200:]}')
  counts = np.array(rows).reshape(len(lines), 23)
  # A sentence matched whole and in one piece is not fragmented: the program drops its one chunk, in sums too.
  counts[(counts[:, 21:] == counts[:, :2]).all(-1) & (counts[:, 20] == 1), 20] = 0
  return counts


def meteor_value(sums: np.ndarray) -> np.ndarray:
  """[..., 23] -> [...]: weighted F mean, less a penalty for fragments (Denkowski and Lavie 2014)."""
  lengths = sums[..., :2]
  function = sums[..., 2:4]
  stages = sums[..., 4:20]
  chunks = sums[..., 20]
  matched = sums[..., 21:23]
  weighted = (
    DELTA * (lengths - function) + (1 - DELTA) * function
  )  # [..., 2]: hypothesis, reference
  by_stage = stages.reshape(*stages.shape[:-1], 4, 2, 2)  # stage, word kind, side
  matches = np.einsum('...skh,s,k->...h', by_stage, STAGES, np.array([DELTA, 1 - DELTA]))
  ratio = np.divide(matches, weighted, out=np.zeros_like(matches), where=weighted > 0)
  precision = ratio[..., 0]
  recall = ratio[..., 1]
  scale = ALPHA * precision + (1 - ALPHA) * recall
  mean = np.divide(precision * recall, scale, out=np.zeros_like(scale), where=scale > 0)
  fragments = np.divide(
    2 * chunks, matched.sum(-1), out=np.zeros_like(chunks), where=matched.sum(-1) > 0
  )
  return mean * (1 - GAMMA * fragments**BETA)
