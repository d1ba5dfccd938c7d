#!/usr/bin/env python3
"""The plugin's answer to a permission request: zmqbus/cli/approve.py."""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))  # links followed: a plugin or a skill may link to this file
if os.path.realpath(sys.path[0]) == HERE:
    del sys.path[0]  # put there by python; list.py and its neighbours would pass for modules
if os.path.isdir(os.path.join(os.path.dirname(HERE), "zmqbus")):
    sys.path.insert(0, os.path.dirname(HERE))

from zmqbus.bootstrap import main

if __name__ == "__main__":
    main("approve")
