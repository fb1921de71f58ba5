"""One self-contained page of a run: scores, curves, predictions with their pictures, environment, config."""

import base64
import html
import json
import math
import pathlib
import random

from mmlm.errors import UserError
from mmlm.evaluation.caption_metrics import METRICS, tokenize_caption
from mmlm.runs import read_json, read_jsonl, write_atomic

SAMPLE = 24  # predictions shown
_POINTS = 300  # of a curve, at most
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 320, 170, 44, 10, 10, 24
_STYLE = '''
:root { color-scheme: light dark; --ink: #1b212c; --soft: #626b7a; --line: #dde1e8; --page: #f5f6f9;
  --card: #fff; --one: #2463b4; --two: #c2571a; --good: #1c7a45 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2d3440;
  --page: #12151b; --card: #1a1f28; --one: #74aef5; --two: #f29a5b; --good: #5ecb8c } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1080px; margin: auto; padding: 20px 16px 60px }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4em 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2em 0 .6em } h3 { font-size: .95rem; margin: 1.4em 0 .5em }
small, .soft { color: var(--soft); font-size: .82rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .82rem }
.box { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px;
  overflow-x: auto }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 225px), 1fr)) }
.curves { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)) }
table { border-collapse: collapse; min-width: 100% }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0;
  border-bottom: 1px solid var(--line) }
th { font-weight: 600 } th small { font-weight: 400 } tr:last-child > * { border-bottom: 0 }
td.long { overflow-wrap: anywhere; font: .82rem/1.5 ui-monospace, monospace }
td b { display: block; font-variant-numeric: tabular-nums } td small { white-space: nowrap }
li { color: var(--soft) } summary { cursor: pointer; font-weight: 600 }
details[open] summary { margin-bottom: 8px }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--soft); font-size: 10px }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round } .axis { stroke: var(--line) }
.s0 { stroke: var(--one); color: var(--one) } .s1 { stroke: var(--two); color: var(--two) }
.s2 { stroke: var(--good); color: var(--good) }
.example { padding: 0; overflow: hidden } .example div { padding: 10px 12px }
.example img, .none { width: 100%; height: 190px; object-fit: contain; background: var(--line) }
.example img { display: block } .none { display: grid; place-items: center; color: var(--soft) }
.example p { margin: 0 0 4px; overflow-wrap: anywhere } .said { font-weight: 600 }
.example ul { margin: 6px 0 0; padding-left: 16px; font-size: .85rem; overflow-wrap: anywhere }
.exact { color: var(--good); font-weight: 700 }
'''


def _text(value) -> str:
  return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _number(value) -> str:
  if not isinstance(value, float):
    return _text(value)
  return f'{value:.3f}' if abs(value) < 100 else f'{value:.1f}'


def _absent(what: str) -> str:
  return f'<p class="box soft">{_text(what)}</p>'


def _read(path, default):
  return read_json(path) if path.exists() else default


def _flatten(value, prefix='') -> dict:
  """{'model': {'width': 8}} -> {'model.width': 8}"""
  if not isinstance(value, dict) or not value:
    return {prefix: value}
  return {key: leaf for name, child in value.items()
          for key, leaf in _flatten(child, f'{prefix}.{name}' if prefix else str(name)).items()}


def _key_table(value: dict, title: str) -> str:
  if not value:
    return _absent('Not written yet.')
  rows = ''.join(f'<tr><th>{_text(key)}<td class=long>{_text(leaf)}' for key, leaf in _flatten(value).items())
  return f'<details class=box><summary>{_text(title)}</summary><table>{rows}</table></details>'


def _score_column(score: dict) -> str:
  how = ', '.join(f'{key} {_text(value)}' for key, value in (score.get('decoding') or {}).items())
  facts = [f'step {_number(score.get("step"))}', f'{score.get("n", "?")} examples', _text(how)]
  return f'<th>{_text(score.get("split", "?"))}<br><small>{"<br>".join(filter(None, facts))}</small>'


def _score_cell(score) -> str:
  if not score:
    return '<td>'
  low, high = score.get('low'), score.get('high')
  interval = f'<small>{_number(low)} to {_number(high)}</small>' if None not in (low, high) else ''
  return f'<td><b>{_number(score.get("value"))}</b>{interval}'


def _order(score: dict) -> tuple:
  """Sorts by split, newest step first; shuffled pictures stand right of the same split with its own."""
  split = str(score.get('split'))
  shuffled = 'shuffled' in f'{split} {score.get("decoding")}'
  return split.replace('shuffled', '').strip('-_. '), -score.get('step', 0), shuffled


def _scores(folder) -> str:
  scores = [read_json(path) for path in (folder / 'scores').glob('*.json')]
  if not scores:
    return _absent('No scores yet: evaluate the run first.')
  scores.sort(key=_order)
  names = dict.fromkeys(name for score in scores for name in score['scores'])
  rows = ''.join(f'<tr><th>{_text(name)}' + ''.join(_score_cell(s['scores'].get(name)) for s in scores)
                 for name in names)
  return (f'<div class=box><table><tr><th>{"".join(map(_score_column, scores))}{rows}</table></div>'
          '<p class=soft>Below each value: its 95 % bootstrap interval over examples.</p>')


def _series(rows) -> dict:
  """{metric: {kind: [(step, value), ...]}}: the train loss, and every number that other kinds report."""
  series = {}
  for row in rows:
    kind, step = row.get('kind', 'train'), row.get('step')
    for name, value in row.items():
      shown = name not in ('step', 'kind') and (kind != 'train' or 'loss' in name)
      if shown and isinstance(step, int) and isinstance(value, (int, float)) and math.isfinite(value):
        series.setdefault(name, {}).setdefault(kind, []).append((step, value))
  return series


def _thin(points) -> list:
  """At most _POINTS points, each the mean of a stretch, so that a peak of noise does not hide the trend."""
  size = math.ceil(len(points) / _POINTS)
  groups = [points[i:i + size] for i in range(0, len(points), size)]
  return [tuple(sum(column) / len(group) for column in zip(*group)) for group in groups]


def _curve(name: str, kinds: dict) -> str:
  """An SVG line plot of one metric, a line a kind."""
  kinds = {kind: _thin(sorted(points)) for kind, points in kinds.items()}
  steps, values = zip(*(point for points in kinds.values() for point in points))
  (first, last), (low, high) = (min(steps), max(steps)), (min(values), max(values))
  x = lambda step: _LEFT + (step - first) / (last - first or 1) * (_WIDTH - _LEFT - _RIGHT)
  y = lambda value: _HEIGHT - _BOTTOM - (value - low) / (high - low or 1) * (_HEIGHT - _TOP - _BOTTOM)
  parts = []
  for value in dict.fromkeys((low, (low + high) / 2, high)):
    height = round(y(value), 1)
    parts.append(f'<line class=axis x1={_LEFT} x2={_WIDTH - _RIGHT} y1={height} y2={height} />'
                 f'<text x={_LEFT - 5} y={height + 3} text-anchor=end>{value:.3g}</text>')
  for step, anchor in ((first, 'start'), (last, 'end')):
    parts.append(f'<text x={x(step):.1f} y={_HEIGHT - 8} text-anchor={anchor}>{step:,.0f}</text>')
  for index, points in enumerate(kinds.values()):
    line = ' '.join(f'{x(step):.1f},{y(value):.1f}' for step, value in points)
    dots = ''.join(f'<circle class=s{index % 3} cx={x(s):.1f} cy={y(v):.1f} r=2 fill=currentColor />'
                   for s, v in points if len(points) < 30)
    parts.append(f'<polyline class=s{index % 3} points="{line}" />{dots}')
  legend = ' '.join(f'<span class=s{index % 3}>● {_text(kind)}</span>' for index, kind in enumerate(kinds))
  return (f'<div class=box><b>{_text(name)}</b> <small>{legend}</small>'
          f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img>{"".join(parts)}</svg></div>')


def _curves(folder) -> str:
  path = folder / 'metrics.jsonl'
  series = _series(read_jsonl(path)) if path.exists() else {}
  if not series:
    return _absent('No metrics yet: metrics.jsonl is missing or empty.')
  boxes = ''.join(_curve(name, kinds) for name, kinds in series.items())
  return f'<div class="grid curves">{boxes}</div><p class=soft>Across: training steps.</p>'


def _image(data: bytes | None) -> str:
  if not data:
    return '<span class=none>no picture</span>'
  kind = 'png' if data.startswith(b'\x89PNG') else 'jpeg'
  return f'<img loading=lazy alt="" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _example(row: dict, pictures) -> str:
  exact = '<span class=exact>✓ exact</span> ' if row['exact'] else ''
  facts = f'word F1 {row["f1"]:.2f} · score {_number(row.get("score"))}<br>{_text(row["id"])}'
  references = ''.join(f'<li>{_text(text)}' for text in row.get('references') or [])
  return (f'<div class="box example">{_image(pictures(row["id"]))}<div>'
          f'<p class=said>{_text(row["hypothesis"]) or "(nothing)"}</p><p>{exact}<small>{facts}</small></p>'
          f'<ul>{references}</ul></div></div>')


def _graded(rows) -> list:
  """The rows with `exact` and `f1` of each; its own score is the model's confidence, not its quality."""
  hypotheses = [tokenize_caption(row['hypothesis']) for row in rows]
  references = [[tokenize_caption(text) for text in row.get('references') or ['']] for row in rows]
  single = lambda name: METRICS[name].value(METRICS[name].statistics(hypotheses, references)).tolist()
  return [{**row, 'exact': exact, 'f1': f1}
          for row, exact, f1 in zip(rows, single('exact_match'), single('word_f1'))]


def _sample(rows, count: int) -> dict:
  """A third each: best, worst, and at random of the rest; always the same for the same rows."""
  rows = sorted(_graded(rows), key=lambda row: (-row['f1'], -row['exact']))
  third = min(count, len(rows)) // 3
  best, rest = rows[:third], rows[third:]
  worst, rest = rest[len(rest) - third:][::-1], rest[:len(rest) - third]
  chance = random.Random(0).sample(rest, min(len(rest), count - 2 * third))
  return {title: group for title, group in (('Best', best), ('Worst', worst), ('At random', chance)) if group}


def _latest_predictions(folder) -> dict:
  """{name: rows} of the newest file of each split, those with shuffled pictures left out."""
  newest = {}
  for path in (folder / 'predictions').glob('*.jsonl'):
    split, _, step = path.stem.rpartition('-')
    if 'shuffled' not in split:
      order = int(step) if step.isdigit() else -1
      newest[split] = max(newest.get(split, (-1, path)), (order, path))
  return {path.stem: rows for _, (_, path) in sorted(newest.items()) if (rows := read_jsonl(path))}


def _predictions(folder, pictures) -> str:
  files = _latest_predictions(folder)
  if not files:
    return _absent('No predictions yet: evaluate the run first.')
  parts = []
  for name, rows in files.items():
    for title, group in _sample(rows, max(3, SAMPLE // len(files))).items():
      cards = ''.join(_example(row, pictures) for row in group)
      parts.append(f'<h3>{title} of {_text(name)}</h3><div class=grid>{cards}</div>')
  return ''.join(parts)


def write_report(run_folder, pictures=lambda identity: None) -> pathlib.Path:
  """Writes <run_folder>/report.html and returns its path; what the run has not made yet is named.

  pictures: a prediction's id -> its picture as PNG or JPEG bytes, or None.
  """
  folder = pathlib.Path(run_folder)
  if not folder.is_dir():
    raise UserError(f'{folder}: no such run folder; `train` makes one.')
  config, environment = _read(folder / 'config.json', {}), _read(folder / 'environment.json', {})
  title = str(config.get('name') or folder.resolve().name)
  card = f'<pre class=box>{_text(str(config["card"]).strip())}</pre>' if config.get('card') else ''
  sections = {
    'Scores': _scores(folder),
    'Curves': _curves(folder),
    'Predictions': _predictions(folder, pictures),
    'Environment': _key_table(environment, 'versions and devices'),
    'Config': _key_table(config, 'all values'),
  }
  body = ''.join(f'<h2>{name}</h2>{content}' for name, content in sections.items())
  head = (f'<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title>'
          f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{_STYLE}</style>')
  path = folder / 'report.html'
  write_atomic(path, f'{head}<main><h1>{_text(title)}</h1>{card}{body}</main></html>\n')
  return path
