"""The watchdog by itself; over training steps: tests/training/test_training_safety.py."""

import subprocess
import sys
import time

from conftest import ROOT

from mmlm.utils.watchdog import STUCK, Watch


def test_a_wait_without_end_ends_the_process():
  code = (
    'import time; from mmlm.utils.watchdog import Watch\n'
    'with Watch(0.1, 0.5)(lambda: "step 7"): time.sleep(60)'
  )
  process = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=50
  )
  assert process.returncode == STUCK
  assert 'still waiting after' in process.stderr
  assert 'step 7: nothing for' in process.stderr


def test_a_watch_without_a_limit_or_before_it_prints_nothing(capfd):
  with Watch()(lambda: 'never'), Watch(30.0)(lambda: 'never'):
    time.sleep(0.6)
  assert capfd.readouterr().err == ''
