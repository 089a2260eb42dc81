"""`python -m cacheyd`."""

import sys

from cacheyd.cli import main

sys.exit(main())
