"""Files of a run folder that a killed writer left."""

import fcntl

from mmlm.utils import run_dir


def test_temporary_files_of_a_killed_writer_go_with_the_next_writing(tmp_path):
  path = tmp_path / 'scores.json'
  of_killed_writer = tmp_path / '.scores.json.abc.tmp'
  of_living_writer = tmp_path / '.scores.json.def.tmp'
  of_another_file = tmp_path / '.other.json.abc.tmp'
  for file in (of_killed_writer, of_living_writer, of_another_file):
    file.write_text('half')

  def names():
    return {file.name for file in tmp_path.iterdir()}

  with open(of_living_writer) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    run_dir.write_json(path, {'a': 1})
    assert names() == {path.name, of_living_writer.name, of_another_file.name}
  run_dir.write_json(path, {'a': 2})
  assert names() == {path.name, of_another_file.name}
  assert run_dir.read_json(path) == {'a': 2}
