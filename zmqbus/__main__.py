"""`python -m zmqbus`: the command `zmqbus`, run by this interpreter."""

import os
import sys

if not __package__:  # run as a file, when `bootstrap` starts the python of the venv
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from zmqbus import bootstrap

if __name__ == "__main__":
    bootstrap.module()
