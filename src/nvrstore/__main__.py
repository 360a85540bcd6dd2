"""`python -m nvrstore`: the same as the command `nvrstore`."""

import sys

from nvrstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
