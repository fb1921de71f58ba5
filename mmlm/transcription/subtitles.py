"""Transcripts as text, SubRip, WebVTT and JSON.

FORMATS maps names, which are also the endings of the files, to functions.
"""

import dataclasses
import html
import json
from collections.abc import Callable

from mmlm.transcription.transcript import Transcript


def clock(seconds: float, point: str = '.', hours: bool = True) -> str:
  """Returns a time as '01:02:03.456', or '02:03.456' without hours below an hour."""
  whole_seconds, milliseconds = divmod(round(seconds * 1000), 1000)
  minutes, second = divmod(whole_seconds, 60)
  text = f'{second:02d}{point}{milliseconds:03d}'
  if not hours and minutes < 60:
    return f'{minutes:02d}:{text}'
  hour, minute = divmod(minutes, 60)
  return f'{hour:02d}:{minute:02d}:{text}'


def txt(transcript: Transcript) -> str:
  """Returns the text, one segment a line."""
  lines = []
  for segment in transcript.segments:
    lines.append(segment.text + '\n')
  return ''.join(lines)


def srt(transcript: Transcript) -> str:
  """Returns SubRip: numbered cues, with commas in the times."""
  cues = []
  for number, segment in enumerate(transcript.segments, 1):
    start = clock(segment.start, point=',')
    end = clock(segment.end, point=',')
    text = _without_arrows(segment.text)
    cues += [f'{number}\n', f'{start} --> {end}\n', f'{text}\n', '\n']
  return ''.join(cues)


def vtt(transcript: Transcript) -> str:
  """Returns WebVTT (W3C), in which < and & of a text are escaped."""
  cues = ['WEBVTT\n\n']
  for segment in transcript.segments:
    start = clock(segment.start)
    end = clock(segment.end)
    text = _without_arrows(segment.text)
    escaped = html.escape(text, quote=False)
    cues += [f'{start} --> {end}\n', f'{escaped}\n', '\n']
  return ''.join(cues)


def _without_arrows(text: str) -> str:
  """Returns a text without the arrow, which players would read as a time."""
  return text.replace('-->', '->')


def as_json(transcript: Transcript) -> str:
  """Returns every field of the transcript and its segments."""
  fields = dataclasses.asdict(transcript)
  text = json.dumps(fields, ensure_ascii=False, indent=1)
  return text + '\n'


FORMATS: dict[str, Callable[[Transcript], str]] = {
  'txt': txt,
  'srt': srt,
  'vtt': vtt,
  'json': as_json,
}
