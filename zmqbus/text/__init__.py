"""Text for people: what a terminal may show of it, and how commands are called where it is shown."""
