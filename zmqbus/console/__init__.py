"""`zmqbus console`: the bus on a page, for a person; on loopback only, and shut against other pages of the browser."""
