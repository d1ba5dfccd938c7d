"""The broker as a process: sockets, threads and files around the pure core."""
