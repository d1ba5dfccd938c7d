"""The log: its records, who writes, reads, searches, verifies and rotates it."""
