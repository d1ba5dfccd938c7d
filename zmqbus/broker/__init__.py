"""The broker: the one process per port that routes. `core` decides, `shell.server` acts."""
