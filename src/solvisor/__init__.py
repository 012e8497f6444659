"""Solvisor, the library: what it does. How it is run lives in ``solvisor_service``."""

__version__ = "0.1.0"
