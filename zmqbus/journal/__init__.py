"""The log: writing, reading, following, searching and checking its records."""
