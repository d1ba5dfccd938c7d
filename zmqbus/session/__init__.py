"""What makes a process a session: whose it is, its lock and state file, and the lines that it shows."""
