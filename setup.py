"""Builds an sdist whose links are links. Everything else is in pyproject.toml.

The plugin's directories link to `bin/` and `zmqbus/`. setuptools would archive each linked directory once, under
whichever of its names it finds first.
"""

import os

from setuptools import setup
from setuptools.command.sdist import sdist


def links(directory):
    """Yields the paths of all symbolic links below a directory."""
    for parent, directories, files in os.walk(directory):
        yield from (path for name in (*directories, *files) if os.path.islink(path := os.path.join(parent, name)))


class SdistWithLinks(sdist):
    """Adds the plugin's links, which MANIFEST.in excludes, to the release tree."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for link in links("plugin"):
            os.symlink(os.readlink(link), os.path.join(base_dir, link))


setup(cmdclass={"sdist": SdistWithLinks})
