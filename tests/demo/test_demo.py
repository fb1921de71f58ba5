"""The page on which a person asks a run: what it takes, what it refuses, and how it shows an
answer.
"""

import base64
import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from browser import browser, visit  # noqa: F401 fixtures
from conftest import ROOT
from helpers.sounds import encoded, tone
from PIL import Image
from program import done, refused
from test_reports import picture
from whispers import write_hugging_face, write_tokenizer

from mmlm import config as configs
from mmlm.cli import demo as command
from mmlm.data import batching
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.data.transforms.audio import RATE
from mmlm.demo.answerers import DemoModel, RunModel, WhisperModel, wav
from mmlm.demo.inputs import Limits, Upload
from mmlm.inference import predictor
from mmlm.utils import run_dir as runs
from mmlm.utils.errors import UserError

uvicorn = pytest.importorskip('uvicorn', reason='requirements-demo.txt is not installed')
pytest.importorskip('starlette')
pytest.importorskip('python_multipart')
from mmlm.demo.server import FORM_SIZE, Server  # noqa: E402

ENGLISH = ['a man on a ladder', 'two dogs, red and blue']
GERMAN = ['ein mann auf einer leiter', 'zwei hunde, rot und blau']
LIMITS = Limits(1 << 20, pixels=2_000_000, seconds=2.0, characters=60)
LOOK = {'words': ['ein', 'Hund'], 'grid': [], 'labels': [], 'seconds': 0}


def upload(data: bytes, name='given.bin') -> Upload:
  return Upload(name, data)


def sound(seconds: float) -> bytes:
  return wav(tone(440, seconds, RATE))


class Canned(DemoModel):
  """Answers the same whatever it is given; `busy` counts the requests that it answers at once."""

  def __init__(self, name, task, kinds, answer):
    super().__init__(name, task, kinds, LIMITS)
    self.answer = answer
    self.busy = 0
    self.most = 0
    self.given = []

  def __call__(self, given):
    self.given.append(self.checked(given))
    self.busy += 1
    self.most = max(self.most, self.busy)
    time.sleep(0.02)
    self.busy -= 1
    if callable(self.answer):
      return self.answer()
    return self.answer


def broken():
  raise ZeroDivisionError('secret')


@pytest.fixture(scope='module')
def models():
  png = (
    'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ'
    'AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
  )
  looks = [
    LOOK | {'modality': 'image', 'grid': [1, 2], 'weights': [[0.1, 0.4], [0.4, 0.1]]},
    LOOK | {'modality': 'text', 'labels': ['a', 'dog'], 'weights': [[0.4, 0.1], [0.1, 0.4]]},
  ]
  of_sound = LOOK | {'modality': 'audio', 'seconds': 1.0, 'weights': [[1, 0, 0], [0, 0, 1]]}
  shown = {'source': png, 'width': 3, 'height': 2, 'small': True}
  result = {}
  for model in (
    Canned(
      'captions',
      'translation',
      {'image': 'picture', 'text': 'text'},
      {'text': 'ein <b>Hund', 'others': [['Hund', -1.0]], 'attention': looks, 'picture': shown},
    ),
    Canned(
      'speech',
      'recognition',
      {'audio': 'sound'},
      {
        'text': 'ein Hund',
        'attention': [of_sound],
        'sound': png,
        'times': [['ein', 0.0, 0.5], ['Hund', 0.5, 1.0]],
      },
    ),
    Canned(
      'mood',
      'classification',
      {'text': 'text'},
      {'text': 'positive', 'probabilities': {'negative': 0.25, 'positive': 0.75}},
    ),
    Canned('broken', 'classification', {'text': 'text'}, broken),
  ):
    result[model.name] = model
  return result


@pytest.fixture(scope='module')
def port(models):
  """Where a server of these listens."""
  with command.listen('127.0.0.1', 0) as listening:
    server = uvicorn.Server(
      uvicorn.Config(Server(models, LIMITS).app('127.0.0.1'), log_level='critical')
    )
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


def fetch(port, path='/answer', body=None, **headers):
  """(status, headers, body) of a request; a body of fields {name: text or (file name, bytes)} is
  sent as a form.
  """
  method = 'GET' if body is None else 'POST'
  if isinstance(body, dict):
    parts = b''
    for name, value in body.items():
      file, data = (
        (f'; filename="{value[0]}"', value[1]) if isinstance(value, tuple) else ('', value.encode())
      )
      parts += (
        f'--xxx\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        + data
        + b'\r\n'
      )
    body = parts + b'--xxx--\r\n'
    headers = headers | {'Content-Type': 'multipart/form-data; boundary=xxx'}
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
  connection.request(
    method, path, body, {name.replace('_', '-'): value for name, value in headers.items()}
  )
  answer = connection.getresponse()
  return answer.status, answer.headers, answer.read()


def asked(port, **fields):
  status, _, body = fetch(port, body=fields)
  return status, json.loads(body)


# Over HTTP


def test_the_page_its_runs_and_nothing_from_elsewhere(port):
  for path, kind in (('/', 'text/html'), ('/page.css', 'text/css'), ('/page.js', 'javascript')):
    status, headers, body = fetch(port, path)
    assert (
      status == 200
      and kind in headers['Content-Type']
      and "default-src 'self'" in headers['Content-Security-Policy']
    )
    assert b'://' not in body
  found = json.loads(fetch(port, '/runs')[2])
  assert [run['name'] for run in found['runs']] == [
    'captions',
    'speech',
    'mood',
    'broken',
  ] and found['limits']['seconds'] == 2
  assert [(i['modality'], i['kind']) for i in found['runs'][0]['inputs']] == [
    ('image', 'picture'),
    ('text', 'text'),
  ]
  assert fetch(port, '/page.py')[0] == fetch(port, '/../models.py')[0] == 404


def test_an_answer(port, models):
  status, found = asked(port, run='captions', text=' a \n dog', image=('../a.png', picture(9, 9)))
  assert status == 200 and found['text'] == 'ein <b>Hund' and found['took'] >= 0
  assert models['captions'].given[-1] == {'image': picture(9, 9), 'text': 'a dog'}


PNG_BOMB = b'\x89PNG\r\n\x1a\n' + b''.join(
  struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  for kind, data in (
    (b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)),
    (b'IDAT', zlib.compress(b'')),
    (b'IEND', b''),
  )
)


@pytest.mark.parametrize(
  'fields, says',
  [
    ({'run': 'mood', 'text': ' \n'}, 'the text is empty'),
    ({'run': 'mood'}, 'the text is empty'),
    ({'run': 'mood', 'text': 'x' * 61}, 'has 61 characters: 60 at most'),
    ({'run': 'other', 'text': 'x'}, "no run 'other' here, but captions, speech"),
    ({'text': 'x'}, "no run ''"),
    (
      {'run': 'mood', 'text': 'x', 'image': ('a.png', b'x')},
      'mood does not read image: it reads text',
    ),
    ({'run': 'mood', 'text': ('a.txt', b'x')}, 'text is sent as a file'),
    ({'run': 'captions', 'text': 'x', 'image': 'y'}, 'image is sent as a text'),
    ({'run': 'captions', 'text': 'x'}, 'captions reads a picture and a text: a picture is missing'),
    ({'run': 'captions', 'text': 'x', 'image': ('C:\\a\\b.png', b'')}, 'b.png has zero bytes'),
    (
      {'run': 'captions', 'text': 'x', 'image': ('/etc/b.txt', b'hello')},
      'b.txt is not a picture that can be read',
    ),
    (
      {'run': 'captions', 'text': 'x', 'image': ('b.png', picture(40, 40)[:-30])},
      "b.png: the picture can't be decoded",
    ),
    (
      {'run': 'captions', 'text': 'x', 'image': ('b.png', picture(2001, 1000))},
      'b.png: more than 2 million pixels',
    ),
    (
      {'run': 'captions', 'text': 'x', 'image': ('b.png', PNG_BOMB)},
      'b.png: more than 2 million pixels',
    ),
    ({'run': 'speech'}, 'a sound is missing'),
    ({'run': 'speech', 'audio': ('a.wav', b'RIFF')}, 'a.wav is not a sound that can be read'),
    (
      {'run': 'speech', 'audio': ('a.wav', encoded(np.zeros(RATE * 3, np.float32), RATE))},
      'a.wav is longer than 2 s',
    ),
  ],
)
def test_what_cannot_be_answered_is_named(port, fields, says):
  status, found = asked(port, **fields)
  assert status == 400 and says in found['error'] and found.keys() == {'error'}


def test_requests_that_are_too_large_or_from_elsewhere(port):
  status, _, body = fetch(port, body=b'', Content_Length=str(LIMITS.bytes + FORM_SIZE + 1))
  assert status == 413 and '1.1 MiB are too much: 1 MiB at most' in json.loads(body)['error']
  status, _, body = fetch(port, body=iter([b'x']), Transfer_Encoding='chunked')
  assert status == 411 and 'no Content-Length' in json.loads(body)['error']
  status, _, body = fetch(port, body=b'nonsense', Content_Type='multipart/form-data')
  assert status == 400 and json.loads(body)['error']
  assert (
    fetch(port, '/runs', Host='evil.example')[0] == 400
    and fetch(port, '/runs', Host='localhost:1')[0] == 200
  )


def test_a_model_that_fails_shows_no_traceback_and_goes_on(port):
  status, found = asked(port, run='broken', text='x')
  assert status == 500 and 'failed on this input' in found['error'] and 'secret' not in str(found)
  assert asked(port, run='mood', text='x')[0] == 200


def test_one_request_at_a_time(port, models):
  threads = []
  for i in range(6):
    threads.append(
      threading.Thread(target=asked, args=(port,), kwargs={'run': 'mood', 'text': str(i)})
    )
  before = len(models['mood'].given)
  [thread.start() for thread in threads], [thread.join() for thread in threads]
  assert models['mood'].most == 1 and len(models['mood'].given) == before + 6


# Runs


def write_run(folder, path: str, texts=(), **changes):
  """A run folder as training begins it, of the smoke form of a config; its parameters are those
  that `untrained` gives.
  """
  config = configs.override(
    configs.load_config(f'{ROOT}/{path}'), {'parallel.strategy': 'jit'} | changes
  )
  runs.write_json(folder / 'config.json', config.to_dict())
  (folder / 'checkpoints').mkdir()
  if texts:
    train_tokenizer(texts, config.tokenizer.kind, 300).save(folder / 'tokenizer.json')
  return folder


@pytest.fixture(scope='module')
def untrained():
  """Runs answer with the parameters they would begin with."""

  def random(experiment, loader):
    batch = {key: np.asarray(value) for key, value in loader(0, one(experiment)).items()}
    if loader.finish:
      batch = loader.finish(batch)
    return experiment.parallel.place(experiment.random_params(batch)), 0

  def one(experiment):
    return batching.Batch(np.arange(1), experiment.data.buckets[-1], 1)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(predictor, 'params_of', random)
    yield


def test_a_run_that_reads_a_picture_and_a_text(untrained, tmp_path):
  folder = write_run(
    tmp_path,
    'configs/translation/numerals.py:smoke',
    [*ENGLISH, *GERMAN],
    **{'data.dir': str(tmp_path / 'data')},
  )
  model = RunModel(str(folder), {'decoding.n_best': '2'}, LIMITS)
  model.get_ready()
  found = model({'text': 'a man', 'image': upload(picture(64, 32))})
  assert (
    found['picture']['width'] == 64
    and found['picture']['height'] == 32
    and len(found['others']) == 1
  )
  assert json.loads(json.dumps(found, allow_nan=False))
  size = Image.open(io.BytesIO(base64.b64decode(found['picture']['source'].split(',')[1]))).size
  assert size == model.picture_size[::-1]  # as large as those of the data set
  for look in found['attention']:
    assert (
      len(look['weights']) == len(look['words'])
      and len(look['weights'][0]) == len(look['labels'])
      or np.prod(look['grid'])
    )
  model.limits = Limits(1 << 20)
  with pytest.raises(UserError, match='tokens, the model reads'):
    model({'text': 'man ' * 1000, 'image': upload(picture(9, 9))})


def test_a_run_that_judges(untrained, tmp_path):
  folder = write_run(tmp_path, 'configs/sentiment/generated.py:smoke,modalities=text', ENGLISH)
  found = RunModel(str(folder), {}, LIMITS)({'text': 'a man'})
  assert (
    found['text'] in found['probabilities']
    and sum(found['probabilities'].values()) == pytest.approx(1)
    and not found['attention']
  )


def test_a_run_that_hears(untrained, tmp_path):
  folder = write_run(tmp_path, 'configs/speech/keypad_tones.py:smoke,head=ctc', ['0123456789'])
  model = RunModel(str(folder), {}, LIMITS)
  found = model({'audio': upload(sound(1.5), 'a.wav')})
  assert found['sound'].startswith('data:image/png') and not found['attention']
  assert all(0 <= start < end <= 1.5 for _, start, end in found['times'])
  model.limits = LIMITS._replace(seconds=60)
  with pytest.raises(UserError, match=r'a.wav has 4.50 s: this run reads 4 s at most'):
    model({'audio': upload(sound(4.5), 'a.wav')})


def test_a_whisper(tmp_path):
  write_hugging_face(tmp_path), write_tokenizer(tmp_path)
  model = WhisperModel(str(tmp_path), LIMITS)
  found = model({'audio': upload(sound(1.0))})
  assert (
    isinstance(found['text'], str) and found['language'] in ('en', 'de', 'yue') and found['sound']
  )
  assert json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
  'path, says',
  [
    ('configs/language_model/text.py:smoke', 'cannot show a run of the task language_model'),
    ('', 'neither a run folder (no checkpoints) nor a Whisper'),
    ('nowhere', 'no such run folder, and no Whisper of this name (whisper-tiny.en, whisper-base)'),
  ],
)
def test_what_is_no_run_to_show(tmp_path, path, says):
  if path.startswith('configs'):
    write_run(tmp_path, path, ENGLISH)
  assert says in refused(
    'demo', tmp_path / 'nowhere' if path == 'nowhere' else tmp_path, '--port=0'
  )


def test_words_of_the_command(tmp_path, monkeypatch):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    said = refused('demo', tmp_path, f'--port={taken.getsockname()[1]}')
    assert 'Address already in use' in said and 'Choose another --port' in said
  assert 'expected 1 or more' in refused(
    'demo', tmp_path, '--max_upload_mb=0'
  ) and 'named twice' in refused('demo', 'a', 'a')
  assert '--port 99999' in refused(
    'demo', 'a', '--port=99999'
  ) and '--host no.such.host.invalid' in refused('demo', 'a', '--host=no.such.host.invalid')
  monkeypatch.setattr(uvicorn.Server, 'run', lambda self, sockets: None)
  monkeypatch.setattr(
    command,
    'open_model',
    lambda name, settings, limits: type('Ready', (), {'get_ready': lambda self: None})(),
  )
  assert 'WARNING: --host 0.0.0.0: everybody' in done('demo', 'a', '--host=0.0.0.0', '--port=0')
  said = done('demo', 'a', '--port=0')
  assert (
    'WARNING' not in said
    and '1 of 1: a is read' in said
    and 'The page is at http://127.0.0.1:' in said
  )
  monkeypatch.setattr(command, 'REQUIREMENTS', {'no_such_module': 'a-library'})
  assert (
    'the demo needs a-library: .venv/bin/python -m pip install -r requirements-demo.txt'
    in refused('demo', 'a')
  )


# In the browser


def opened(visit, port, run=0, **options):  # noqa: F811
  page = visit(f'http://127.0.0.1:{port}/', **options)
  page.wait_for_selector('#inputs input, #inputs textarea')
  if run:
    page.select_option('#run', str(run))
  return page


def test_picture_and_text_in_the_browser(visit, port, tmp_path):  # noqa: F811
  page = opened(visit, port)
  (tmp_path / 'a.png').write_bytes(picture(30, 20))
  page.set_input_files('#in-image', tmp_path / 'a.png')
  page.wait_for_selector('#inputs img')
  assert (
    page.evaluate(
      'document.querySelector("#inputs img").decode().then(() => document.querySelector("#inputs '
      'img").naturalWidth)'
    )
    == 30
  )
  page.fill('#in-text', 'a dog')
  page.focus('#ask')
  page.keyboard.press('Enter')
  page.wait_for_selector('#result:not([hidden])')
  assert page.inner_text('.answer') == 'ein <b>Hund' and page.locator('.others li').count() == 1
  heats = (
    "[...document.querySelectorAll('.source span')]"
    '.map(s => +(s.style.background.match(/[\\d.]+(?=\\))/) ?? [1])[0])'
  )
  assert (
    page.evaluate(heats)[0] > page.evaluate(heats)[1] and page.locator('.film figure').count() == 2
  )
  page.focus('.words button')
  page.keyboard.press('ArrowRight')
  assert (
    page.evaluate('document.activeElement.textContent') == 'Hund'
    and page.evaluate(heats)[0] < page.evaluate(heats)[1]
  )
  alpha = (
    "(data => [data[3], data[7]])(document.querySelector('.overlay canvas')"
    ".getContext('2d').getImageData(0, 0, 2, 1).data)"
  )
  left, right = page.evaluate(alpha)
  assert left > right


def test_messages_and_bars_in_the_browser(visit, port):  # noqa: F811
  page = opened(visit, port, 2, color_scheme='dark')
  page.click('#ask')
  page.wait_for_selector('#error:not([hidden])')
  assert 'the text is empty' in page.inner_text('#error') and page.is_hidden('#result')
  page.fill('#in-text', 'good')
  page.click('#ask')
  page.wait_for_selector('#result:not([hidden])')
  assert page.is_hidden('#error') and page.evaluate(
    "[...document.querySelectorAll('.bar i')].map(i => i.style.width)"
  ) == ['75%', '25%']
  ground = 'getComputedStyle(document.body).backgroundColor'
  assert page.evaluate(ground) != opened(visit, port, color_scheme='light').evaluate(ground)


def test_a_voice_on_a_phone(visit, port, models):  # noqa: F811
  page = opened(visit, port, 1, viewport={'width': 360, 'height': 700}, permissions=['microphone'])
  before = len(models['speech'].given)
  page.click('.record')
  page.wait_for_selector('.record.recording, #inputs audio', timeout=60_000)
  time.sleep(0.6)
  page.evaluate(
    "document.querySelector('.record.recording')?.click()"
  )  # else it has reached the limit and ended by itself
  page.wait_for_selector('#inputs audio')
  page.click('#ask')
  page.wait_for_selector('#result:not([hidden])')
  data = models['speech'].given[before]['audio']
  assert data[:4] == b'RIFF' and 0.2 < (len(data) - 44) / 2 / RATE < 2
  assert page.evaluate(
    "[...document.querySelectorAll('.timeline li')].map(li => li.textContent)"
  ) == [
    '0.00 – 0.50 sein',
    '0.50 – 1.00 sHund',
  ]
  assert page.evaluate('document.documentElement.scrollWidth') <= 360
