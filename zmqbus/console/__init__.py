"""`zmqbus console`: shows the bus on a web page; on loopback only, and protected from other pages of the browser."""
