"""Text for people: making it safe to show, and the names of commands in it."""
