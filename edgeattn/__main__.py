"""`python -m edgeattn`: the command line."""

import sys

from edgeattn.cli import main

sys.exit(main())
