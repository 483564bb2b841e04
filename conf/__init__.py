"""What can be configured, and the only door to it: `conf.load.load`."""
