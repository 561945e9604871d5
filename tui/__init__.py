"""The operators' console. Its screens come with the console's own release."""
