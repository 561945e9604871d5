"""Skerry without a screen: engine, trust, daemons, client and command."""

__version__ = "0.1.0"
