"""Tasks: named, versioned jobs with a prompt, a form of the answer and its judges."""
