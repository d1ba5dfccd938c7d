"""`python -m zmqbus`: the command `zmqbus`, run by this very python."""

import os
import sys

if not __package__:  # run as a file, as `bootstrap` has it when it changes over to the venv's python
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from zmqbus import bootstrap

if __name__ == "__main__":
    bootstrap.module()
