import json
import pickle

import numpy as np
import pytest
from helpers.sounds import encoded, noise
from PIL import Image

from mmlm.data.sources import manifest
from mmlm.data.sources.manifest import ManifestSource, check_files
from mmlm.utils.errors import UserError


@pytest.fixture
def write(tmp_path):
  (tmp_path / 'pictures').mkdir()
  for name in 'abc':
    Image.new('RGB', (4, 4), 'red').save(tmp_path / 'pictures' / f'{name}.jpg')

  def write(*rows):
    path = tmp_path / 'own.jsonl'
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text('\n'.join(lines), encoding='utf-8')
    return path

  return write


def row(name, **changes):
  return {'id': name, 'image': f'pictures/{name}.jpg', 'target': f'caption of {name}'} | changes


def test_examples(write):
  path = write(row('a'), '', row('b', target=['ein Hund', '狗'], text='hello', label=2))
  source = ManifestSource(path)
  assert len(source) == 2
  picture = (path.parent / 'pictures' / 'a.jpg').read_bytes()
  assert source[0] == {'id': 'a', 'image': picture, 'targets': ('caption of a',)}
  assert source[1] == {
    'id': 'b',
    'image': picture,
    'targets': ('ein Hund', '狗'),
    'text': 'hello',
    'label': 2,
  }
  assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_only_what_is_required_is_required(write):
  path = write({'id': 1, 'image': 'pictures/a.jpg'}, {'id': 2, 'text': 'x', 'label': 0})
  assert ManifestSource(path, require=())[1] == {'id': '2', 'text': 'x', 'label': 0}
  with pytest.raises(UserError, match="line 1: no 'label'"):
    ManifestSource(path, require=('label',))


@pytest.mark.parametrize(
  'bad, says',
  [
    ('{"id": "x", ', 'line 2: bad JSON'),
    ('[1]', 'line 2: not a JSON object'),
    (row('b', id=None), "line 2: no 'id'"),
    (row('b', target=None), "line 2: no 'target'"),
    (row('b', target=''), "line 2: no 'target'"),
    (row('b', target=[]), 'line 2: .target. must'),
    (row('b', target=3), 'line 2: .target. must'),
    (row('a'), "line 2: the id 'a' stands already in line 1"),
    (row('b', image=None), "line 2: no 'image'"),
    (row('b', image='pictures/z.jpg'), 'line 2: there is no file pictures/z.jpg'),
    (row('b', image=3), 'line 2: .image. must'),
  ],
)
def test_a_bad_line_is_named(write, bad, says):
  with pytest.raises(UserError, match=says) as caught:
    ManifestSource(write(row('a'), bad))
  assert 'own.jsonl' in str(caught.value)


def test_many_errors_are_counted(write):
  with pytest.raises(UserError, match='line 5.*\n... 8 errors in all') as caught:
    ManifestSource(write(*['{'] * 8))
  assert 'line 6' not in str(caught.value)


def test_no_lines_no_file_no_text(write, tmp_path):
  with pytest.raises(UserError, match='no example'):
    ManifestSource(write('', ''))
  with pytest.raises(UserError, match='nowhere.jsonl: No such file'):
    ManifestSource(tmp_path / 'nowhere.jsonl')
  (tmp_path / 'latin.jsonl').write_bytes(b'{"id": "\xe4"}')
  with pytest.raises(UserError, match='not UTF-8'):
    ManifestSource(tmp_path / 'latin.jsonl')


def test_broken_pictures_stop_or_are_skipped(write, tmp_path):
  path = write(row('a'), row('b'), row('c'))
  (tmp_path / 'pictures' / 'b.jpg').write_bytes(b'')
  source = ManifestSource(path)
  with pytest.raises(UserError, match='b.jpg: zero bytes'):
    check_files(source, tmp_path / 'cache')
  kept = check_files(source, tmp_path / 'cache', skip_broken=True)
  assert [kept[i]['id'] for i in range(len(kept))] == ['a', 'c']


def test_broken_sounds_and_features_stop_or_are_skipped(write, tmp_path, capsys):
  (tmp_path / 'good.wav').write_bytes(encoded(noise(0.1)))
  (tmp_path / 'cut.wav').write_bytes(encoded(noise(0.1))[:1000])
  np.save(tmp_path / 'good.npy', np.ones((3, 4)))
  (tmp_path / 'bad.npy').write_bytes(b'nothing')
  names = ('good.wav', 'cut.wav', 'good.npy', 'bad.npy')
  source = ManifestSource(
    write(*({'id': name, 'audio': name, 'target': 'x', 'speaker': 's'} for name in names)),
    ('audio', 'targets'),
  )
  with pytest.raises(
    UserError,
    match=r'2 of 4 sounds are broken:\n  cut\.wav: \S+cut\.wav: the file .*was cut off\n  '
    r'bad\.npy: \S+bad\.npy: no features',
  ):
    check_files(source, tmp_path / 'cache')
  kept = check_files(source, tmp_path / 'cache', skip_broken=True)
  assert [kept[i]['id'] for i in range(len(kept))] == ['good.wav', 'good.npy'] and kept[0][
    'speaker'
  ] == 's'
  assert 'left out' in capsys.readouterr().err
  assert check_files(source, tmp_path / 'cache', fields=('text', 'image')) is source


def test_the_check_is_remembered_until_a_file_changes(write, tmp_path, monkeypatch):
  source = ManifestSource(write(row('a'), row('b')))
  decoded = []
  monkeypatch.setattr(manifest, 'decode_picture', decoded.append)
  for _ in range(2):
    assert check_files(source, tmp_path / 'cache') is source
  assert len(decoded) == 2
  (tmp_path / 'pictures' / 'b.jpg').write_bytes(b'longer than before')
  check_files(source, tmp_path / 'cache')
  assert len(decoded) == 4
