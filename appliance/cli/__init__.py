"""The command `skerry`: one module a noun; the only package that prints or exits."""
