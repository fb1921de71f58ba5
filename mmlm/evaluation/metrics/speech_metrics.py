"""Error rates of recognition: words and characters, by the alignment of least edits (jiwer).

Axes: N examples; K = 4 sufficient statistics: hits, substitutions, deletions, insertions. Texts are
compared in lower case and in Unicode's composed form, with one space between words; punctuation
counts. Of several references each example counts the one with the fewest errors.
"""

import functools
import unicodedata
from collections.abc import Callable

import jiwer
import numpy as np
from numpy.typing import NDArray

from mmlm.evaluation.metrics import views
from mmlm.evaluation.metrics.metric import Metric, References, Rows, Texts

KINDS = ('hits', 'substitutions', 'deletions', 'insertions')
_PLACES = {'equal': 0, 'substitute': 1, 'delete': 2, 'insert': 3}

Normalize = Callable[[str], str]


def plain(text: str) -> str:
  """Returns a text in lower case and composed form, with one space between words."""
  return ' '.join(unicodedata.normalize('NFC', text).lower().split())


@functools.cache
def _english() -> Normalize:
  from whisper_normalizer.english import EnglishTextNormalizer  # reads its table of spellings

  return EnglishTextNormalizer()


def whispers_english(text: str) -> str:
  """Normalizes English by Whisper's rules (Radford et al. 2022, appendix C).

  Numerals, spellings and contractions are written one way; fillers and punctuation are dropped.
  """
  return plain(_english()(text))


def alignment(
  reference: str,
  hypothesis: str,
  normalize: Normalize = plain,
) -> list[tuple[str, list[str], list[str]]]:
  """Aligns the words of two texts.

  Returns:
    [('equal', 'substitute', 'delete' or 'insert', words of the reference, words of the hypothesis)]
    from the first word to the last.
  """
  output = jiwer.process_words(normalize(reference), normalize(hypothesis))
  (reference_words,) = output.references
  (hypothesis_words,) = output.hypotheses
  result = []
  for chunk in output.alignments[0]:
    in_reference = reference_words[chunk.ref_start_idx : chunk.ref_end_idx]
    in_hypothesis = hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx]
    result.append((chunk.type, in_reference, in_hypothesis))
  return result


def edits(
  hypotheses: Texts,
  references: References,
  process: Callable,
  normalize: Normalize = plain,
) -> NDArray:
  """Returns counts of KINDS, [N, 4].

  Args:
    process: jiwer's function of words or of characters (spaces between words count).
  """
  statistics = np.zeros((len(hypotheses), len(KINDS)))
  for counts, hypothesis, group in zip(statistics, hypotheses, references, strict=True):
    normalized = normalize(hypothesis)
    candidates = []
    for reference in group:
      output = process(normalize(reference), normalized)
      candidates.append(_counts(output.alignments[0]))
    counts[:] = min(candidates, key=_errors_and_length)
  return statistics


def _errors_and_length(counts: NDArray) -> tuple[float, float]:
  """Orders references: fewer errors first, of equally many the longer one."""
  return counts[1:].sum(), -counts[:3].sum()


def _counts(chunks: list) -> NDArray:
  counts = np.zeros(len(KINDS))
  for chunk in chunks:
    in_reference = chunk.ref_end_idx - chunk.ref_start_idx
    in_hypothesis = chunk.hyp_end_idx - chunk.hyp_start_idx
    counts[_PLACES[chunk.type]] += max(in_reference, in_hypothesis)
  return counts


def error_rate(sums: NDArray) -> NDArray:
  """Returns percent [...] of counts [..., 4]: errors over the length of the references.

  More than 100 is possible. References without any length count as one of length 1.
  """
  errors = sums[..., 1:].sum(-1)
  length = sums[..., :3].sum(-1)
  return 100 * errors / np.maximum(1, length)


# Definitions


def _error_metric(
  process: Callable,
  definition: str,
  normalize: Normalize = plain,
) -> Metric:
  return Metric(
    definition=definition,
    higher_is_better=False,
    view=views.surface,
    statistics=functools.partial(
      edits,
      process=process,
      normalize=normalize,
    ),
    value=error_rate,
  )


def _word_error_rate(compared: str, normalize: Normalize) -> Metric:
  formula = '(substitutions + deletions + insertions) / words of the references'
  definition = f'word error rate in percent, {formula}, {compared}, over the whole split (jiwer)'
  return _error_metric(jiwer.process_words, definition, normalize)


WER = _word_error_rate('lower case, punctuation counts', plain)
WER_NORMALIZED = _word_error_rate("after Whisper's normaliser of English", whispers_english)
CER = _error_metric(
  jiwer.process_characters,
  'character error rate in percent, lower case, spaces between words and punctuation count, '
  'over the whole split (jiwer)',
)


# What a score file holds beside the rates


def error_report(
  predictions: Rows,
  words: NDArray,
  characters: NDArray,
) -> dict:
  """Returns the counts of errors behind the rates, also by speaker.

  Args:
    predictions: N rows of a predictions file.
    words, characters: [N, 4], the statistics of 'wer' and 'cer' of these rows.

  Returns:
    {'words' and 'characters': {kind: count}} and, where rows name a speaker, 'by_speaker': a list
    of {'speaker', 'utterances', 'words' (of the references), 'wer', 'cer'} in the order of the
    names.
  """
  report: dict = {'words': _by_kind(words), 'characters': _by_kind(characters)}
  names = np.array([prediction.get('speaker') or '' for prediction in predictions])
  if names.any():
    report['by_speaker'] = []
    for name in np.unique(names):
      of_speaker = names == name
      report['by_speaker'].append(_of_speaker(name, words[of_speaker], characters[of_speaker]))
  return report


def _by_kind(counts: NDArray) -> dict[str, int]:
  return dict(zip(KINDS, map(int, counts.sum(0))))


def _of_speaker(
  name: str,
  words: NDArray,
  characters: NDArray,
) -> dict:
  return {
    'speaker': str(name) or 'unknown',
    'utterances': len(words),
    'words': int(words[:, :3].sum()),
    'wer': round(float(error_rate(words.sum(0))), 2),
    'cer': round(float(error_rate(characters.sum(0))), 2),
  }


def timing(predictions: Rows, seconds: float) -> dict:
  """Returns the real-time factor: `seconds` of decoding over the seconds of the decoded audio.

  Returns {} where the rows hold no 'seconds'.
  """
  length = sum(prediction.get('seconds', 0) for prediction in predictions)
  if not length:
    return {}
  return {
    'audio_seconds': round(length, 2),
    'decoding_seconds': round(seconds, 2),
    'real_time_factor': seconds / length,
  }


def format_report(report: dict) -> str:
  """Formats what a score file holds of `error_report` and `timing` for a terminal."""
  lines = []
  for unit in ('words', 'characters'):
    if unit in report:
      counts = ', '.join(f'{report[unit][kind]:,} {kind}' for kind in KINDS)
      lines.append(f'  {unit:<12} {counts}')
  speakers = report.get('by_speaker', [])
  width = max((len(speaker['speaker']) for speaker in speakers), default=0)
  for speaker in speakers:
    lines.append(
      f'  {speaker["speaker"]:<{width}}  {speaker["utterances"]:>5} utterances '
      f'{speaker["words"]:>6} words   WER {speaker["wer"]:6.2f}   CER {speaker["cer"]:6.2f}'
    )
  if 'real_time_factor' in report:
    lines.append(
      f'  {"speed":<12} {report["audio_seconds"]:.0f} s of sound in '
      f'{report["decoding_seconds"]:.1f} s, compilation and loading included: '
      f'real-time factor {report["real_time_factor"]:.4f}'
    )
  return '\n'.join(lines)
