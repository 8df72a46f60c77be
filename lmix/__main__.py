"""Entry point of `python -m lmix`."""

import sys

from lmix.cli import main

if __name__ == "__main__":
    sys.exit(main())
