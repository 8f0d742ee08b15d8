"""`python -m pyro_vae`: the command line without an installed script."""

import sys

from pyro_vae.app.cli import main

sys.exit(main())
