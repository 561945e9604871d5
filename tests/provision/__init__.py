"""Provisioning of real booted boxes from a real kit."""
