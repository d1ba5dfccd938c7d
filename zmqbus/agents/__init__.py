"""What zmqbus does for the coding agents that it runs under, beyond its commands."""
