"""`python -m hisparse_sidecar.server`."""

import sys

from hisparse_sidecar.server.main import main

sys.exit(main())
