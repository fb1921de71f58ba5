"""Transcripts as files: plain text, SubRip, WebVTT, JSON. `FORMATS` maps names, which are endings too, to functions."""

import dataclasses
import html
import json

from mmlm.transcription.transcription_options import Transcript


def clock(seconds: float, point: str = '.', hours: bool = True) -> str:
  """'01:02:03.456', or '62:03.456' without hours below an hour."""
  milliseconds = round(seconds * 1000)
  minutes, rest = divmod(milliseconds, 60_000)
  if hours or minutes >= 60:
    shown = f'{minutes // 60:02d}:{minutes % 60:02d}'
  else:
    shown = f'{minutes:02d}'
  return f'{shown}:{rest // 1000:02d}{point}{rest % 1000:03d}'


def txt(transcript: Transcript) -> str:
  """A segment a line."""
  return ''.join(f'{segment.text}\n' for segment in transcript.segments)


def srt(transcript: Transcript) -> str:
  """SubRip: numbered, with commas in the times; an arrow in a text would be read as a time."""
  return ''.join(
    f'{number}\n{clock(s.start, ",")} --> {clock(s.end, ",")}\n{s.text.replace("-->", "->")}\n\n'
    for number, s in enumerate(transcript.segments, 1)
  )


def vtt(transcript: Transcript) -> str:
  """WebVTT (W3C), where < and & of a text are escaped."""
  cues = (
    f'{clock(s.start)} --> {clock(s.end)}\n{html.escape(s.text.replace("-->", "->"), quote=False)}\n\n'
    for s in transcript.segments
  )
  return 'WEBVTT\n\n' + ''.join(cues)


def as_json(transcript: Transcript) -> str:
  """Every field of the transcript and its segments."""
  return json.dumps(dataclasses.asdict(transcript), ensure_ascii=False, indent=1) + '\n'


FORMATS = {'txt': txt, 'srt': srt, 'vtt': vtt, 'json': as_json}
