"""Checks of an installation: each finds faults and names the command that fixes it. Changes and starts nothing."""
