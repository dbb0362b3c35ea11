"""The version of fsqueue."""

__version__ = "0.1.0"
