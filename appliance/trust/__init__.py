"""Keys and signatures: what is trusted, and proof that something was signed by it. The only home of `cryptography`."""
