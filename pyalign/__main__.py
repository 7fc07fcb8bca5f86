"""`python -m pyalign`: the command line."""

import sys

from pyalign.cli import main

if __name__ == "__main__":
    sys.exit(main())
