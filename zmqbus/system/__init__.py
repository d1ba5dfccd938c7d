"""What is asked of the operating system: streams, children, descriptors, networks, ports, pid files."""
