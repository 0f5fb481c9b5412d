"""What the API and the workers both know."""

__version__ = "0.1.0"
