"""`python -m jukebox_jax` is `jukebox-jax`."""

import sys

from jukebox_jax.cli.main import main

sys.exit(main())
