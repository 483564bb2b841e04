"""The `twinward` command: reads words, calls the part that does the work, shows what came of it."""

import link  # noqa: F401  before anything imports gRPC: link/__init__.py says why
