"""What the broker keeps across its own death: the `Store` protocol and its implementation in SQLite."""
