"""The client's side of the bus: `core` decides, `transport` acts, `locate` finds a broker, `launch` starts one."""
