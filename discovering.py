"""The command line: python discovering.py mode=... (see --help). All it does is in fgvr/cli.py."""

import sys

from fgvr.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
