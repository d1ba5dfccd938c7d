"""What may be wrong with an installation, and how each fault is mended. Looks only: nothing is changed or started."""
