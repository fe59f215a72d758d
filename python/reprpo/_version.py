"""The version of reprpo, and the version of torch that its binary is built for."""

__version__ = "0.1.0"
TORCH = "2.11.0"
