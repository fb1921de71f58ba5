"""Error rates of recognition: words and characters, by the alignment of least edits (jiwer).

Axes: N examples; K = 4 sufficient statistics: hits, substitutions, deletions, insertions. Texts are compared in lower case and in Unicode's
composed form, with one space between words; punctuation counts. Of several references each example counts the one with the fewest errors.
"""

import functools
import unicodedata
from collections.abc import Callable

import jiwer
import numpy as np

from mmlm.evaluation.metrics.metric import Metric

KINDS = ('hits', 'substitutions', 'deletions', 'insertions')
_PLACES = {'equal': 0, 'substitute': 1, 'delete': 2, 'insert': 3}


def plain(text: str) -> str:
  return ' '.join(unicodedata.normalize('NFC', text).lower().split())


@functools.cache
def _english() -> Callable[[str], str]:
  from whisper_normalizer.english import EnglishTextNormalizer  # reads its table of spellings

  return EnglishTextNormalizer()


def whispers_english(text: str) -> str:
  """By Whisper's rules for English (Radford et al. 2022, appendix C): numerals, spellings and contractions alike, no fillers, no punctuation."""
  return plain(_english()(text))


def alignment(
  reference: str, hypothesis: str, normalize: Callable[[str], str] = plain
) -> list[tuple[str, list, list]]:
  """[('equal', 'substitute', 'delete' or 'insert', words of the reference, words of the hypothesis)] from the first word to the last."""
  found = jiwer.process_words(normalize(reference), normalize(hypothesis))
  (true,), (said,) = found.references, found.hypotheses
  result = []
  for part in found.alignments[0]:
    result.append(
      (
        part.type,
        true[part.ref_start_idx : part.ref_end_idx],
        said[part.hyp_start_idx : part.hyp_end_idx],
      )
    )
  return result


def edits(
  hypotheses, references, process: Callable, normalize: Callable[[str], str] = plain
) -> np.ndarray:
  """[N, 4] counts of KINDS; `process` is jiwer's of words or of characters (spaces between words count)."""
  rows = np.zeros((len(hypotheses), len(KINDS)))
  for row, hypothesis, group in zip(rows, hypotheses, references, strict=True):
    said = normalize(hypothesis)
    counts = [_counts(process(normalize(reference), said).alignments[0]) for reference in group]
    row[:] = min(
      counts, key=lambda found: (found[1:].sum(), -found[:3].sum())
    )  # the longer of two as near
  return rows


def _counts(parts) -> np.ndarray:
  counts = np.zeros(len(KINDS))
  for part in parts:
    counts[_PLACES[part.type]] += max(
      part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx
    )
  return counts


def error_rate(sums: np.ndarray) -> np.ndarray:
  """[..., 4] -> [...], percent: errors over the length of the references; more than 100 is possible. Without any length, errors count as over 1."""
  return (
    100
    * sums[..., 1:].sum(-1)
    / np.maximum(
      1,
      sums[..., :3].sum(-1),
    )
  )


def _error_metric(process, definition: str, normalize=plain) -> Metric:
  return Metric(
    definition,
    functools.partial(edits, process=process, normalize=normalize),
    error_rate,
    'surface',
  )


_WORDS = 'word error rate in percent, (substitutions + deletions + insertions) / words of the references, {}, over the whole split (jiwer)'
SPEECH_METRICS = {
  'wer': _error_metric(jiwer.process_words, _WORDS.format('lower case, punctuation counts')),
  'wer_normalized': _error_metric(
    jiwer.process_words, _WORDS.format("after Whisper's normaliser of English"), whispers_english
  ),
  'cer': _error_metric(
    jiwer.process_characters,
    'character error rate in percent, lower case, spaces between words and punctuation count, over the whole split (jiwer)',
  ),
}


def error_report(predictions: list[dict], words: np.ndarray, characters: np.ndarray) -> dict:
  """What stands in a score file beside the rates.

  Args:
    predictions: N rows of a predictions file.
    words, characters: [N, 4], the statistics of 'wer' and 'cer' of these rows.

  Returns:
    {'words' and 'characters': {kind: count}} and, where rows tell a speaker, 'by_speaker': a list of {'speaker', 'utterances', 'words' (of
    the references), 'wer', 'cer'} in the order of the names.
  """

  def count(sums):
    return dict(zip(KINDS, map(int, sums.sum(0))))

  report = {'words': count(words), 'characters': count(characters)}
  names = np.array([row.get('speaker') or '' for row in predictions])
  if names.any():
    report['by_speaker'] = [
      _of_speaker(name, words[names == name], characters[names == name])
      for name in np.unique(names)
    ]
  return report


def timing(predictions: list[dict], seconds: float) -> dict:
  """`seconds` of decoding over those of the sounds that were decoded, the real-time factor; {} where the rows do not tell their 'seconds'."""
  length = sum(row.get('seconds', 0) for row in predictions)
  if length:
    return {
      'audio_seconds': round(length, 2),
      'decoding_seconds': round(seconds, 2),
      'real_time_factor': seconds / length,
    }
  return {}


def _of_speaker(name: str, words: np.ndarray, characters: np.ndarray) -> dict:
  rates = {}
  for key, counts in (('wer', words), ('cer', characters)):
    rates[key] = round(float(error_rate(counts.sum(0))), 2)
  return {
    'speaker': str(name) or 'unknown',
    'utterances': len(words),
    'words': int(words[:, :3].sum()),
    **rates,
  }


def format_report(report: dict) -> str:
  """What a score file has of `error_report` and `timing`, for a terminal."""
  lines = []
  for unit in ('words', 'characters'):
    if unit in report:
      lines.append(f'  {unit:<12} ' + ', '.join(f'{report[unit][kind]:,} {kind}' for kind in KINDS))
  table = report.get('by_speaker', [])
  width = max((len(row['speaker']) for row in table), default=0)
  lines += [
    f'  {row["speaker"]:<{width}}  {row["utterances"]:>5} utterances {row["words"]:>6} words   WER {row["wer"]:6.2f}   CER {row["cer"]:6.2f}'
    for row in table
  ]
  if 'real_time_factor' in report:
    times = f'{report["audio_seconds"]:.0f} s of sound in {report["decoding_seconds"]:.1f} s, compilation and loading included'
    lines.append(f'  {"speed":<12} {times}: real-time factor {report["real_time_factor"]:.4f}')
  return '\n'.join(lines)
