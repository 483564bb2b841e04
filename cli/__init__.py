"""The `twinward` command: reads words, calls the part that does the work, shows what came of it."""
