"""`python -m hisparse_sidecar.cli`: the same as `hisparse`."""

import sys

from hisparse_sidecar.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
