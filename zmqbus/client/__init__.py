"""The client's side of the bus: `core` decides, `link` acts, `launch` finds or starts a broker."""
