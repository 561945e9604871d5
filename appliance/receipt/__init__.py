"""Receipts of what was done to a box: signed statements, kept in one folder, that anybody with its key can check."""
