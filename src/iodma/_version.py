"""The version, and the only place where it is written: the build reads it here."""

__version__ = "0.1.0"
