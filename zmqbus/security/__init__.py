"""Access to the bus: keys, authentication, private files, digests."""
