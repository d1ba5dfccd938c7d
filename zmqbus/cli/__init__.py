"""The commands, a file each. Every module has `main(argv) -> exit status`."""
