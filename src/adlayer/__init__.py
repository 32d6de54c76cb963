"""Adlayer: discover the atomic structure of surfaces."""

__version__ = "0.1.0"
