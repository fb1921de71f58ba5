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
  milliseconds = round(seconds * 1000)
  minutes, milliseconds = divmod(milliseconds, 60_000)
  rest = f'{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}'
  if hours or minutes >= 60:
    return f'{minutes // 60:02d}:{minutes % 60:02d}:{rest}'
  return f'{minutes:02d}:{rest}'


def txt(transcript: Transcript) -> str:
  """Returns the text, one segment a line."""
  return ''.join(f'{segment.text}\n' for segment in transcript.segments)


def srt(transcript: Transcript) -> str:
  """Returns SubRip: numbered cues, with commas in the times."""
  cues = []
  for number, segment in enumerate(transcript.segments, 1):
    times = f'{clock(segment.start, ",")} --> {clock(segment.end, ",")}'
    cues.append(f'{number}\n{times}\n{_without_arrows(segment.text)}\n\n')
  return ''.join(cues)


def vtt(transcript: Transcript) -> str:
  """Returns WebVTT (W3C), in which < and & of a text are escaped."""
  cues = ['WEBVTT\n\n']
  for segment in transcript.segments:
    times = f'{clock(segment.start)} --> {clock(segment.end)}'
    text = html.escape(_without_arrows(segment.text), quote=False)
    cues.append(f'{times}\n{text}\n\n')
  return ''.join(cues)


def _without_arrows(text: str) -> str:
  """Returns a text without the arrow, which players would read as a time."""
  return text.replace('-->', '->')


def as_json(transcript: Transcript) -> str:
  """Returns every field of the transcript and its segments."""
  return json.dumps(dataclasses.asdict(transcript), ensure_ascii=False, indent=1) + '\n'


FORMATS: dict[str, Callable[[Transcript], str]] = {
  'txt': txt,
  'srt': srt,
  'vtt': vtt,
  'json': as_json,
}
