"""The command line: python discovering.py mode=... (see --help). All it does is in fgvr/cli.py."""

import sys

from fgvr.cli import program

if __name__ == "__main__":
    sys.exit(program(sys.argv[1:]))
