"""The operating system: standard streams, child processes, descriptors, networks, ports, pid files."""
