"""`python -m tapster` is `tapster`."""

import sys

from tapster.cli import main

if __name__ == "__main__":
    sys.exit(main())
