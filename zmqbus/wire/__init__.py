"""What goes over the wire: the verbs and their fields, the codec, names and ids, and the sockets."""
