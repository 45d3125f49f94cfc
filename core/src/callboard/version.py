"""The version of the core, read once: asking the installed metadata reads files."""

from importlib.metadata import version

VERSION = version("callboard")
