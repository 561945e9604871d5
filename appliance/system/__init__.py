"""What the operating system tells and is told: processors, memory, service manager."""
