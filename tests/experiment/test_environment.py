"""The commit of environment.json."""

import re
import subprocess

from mmlm.experiment.environment import commit_of


def test_a_machine_without_git_has_no_commit(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  assert commit_of(tmp_path) is None


def test_written_results_do_not_make_a_commit_dirty(tmp_path):
  def git(*words):
    who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    command = ['git', '-C', str(tmp_path), *who, *words]
    subprocess.run(command, check=True, capture_output=True)

  git('init')
  for name in ('README.md', 'code.py', 'experiments/README.md', 'experiments/results/mr.json'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('1')
  git('add', '.')
  git('commit', '-m', 'one')
  (tmp_path / 'experiments' / 'results' / 'mr.json').write_text('2')
  commit = commit_of(tmp_path)
  assert re.fullmatch('[0-9a-f]{7,}', commit)
  (tmp_path / 'code.py').write_text('2')
  assert commit_of(tmp_path) == f'{commit}-dirty'
