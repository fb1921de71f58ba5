"""`python -m mmlm COMMAND ...`: the same as `./launch.sh COMMAND ...`."""

from mmlm.cli.main import main

if __name__ == '__main__':
  main()
