"""The kit: what the station puts together, and what install.sh accepts."""
