"""Who may connect: keys, the checks of private files, digests."""
