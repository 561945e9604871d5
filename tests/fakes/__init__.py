"""Stand-ins that behave like the real thing, made for tests."""
