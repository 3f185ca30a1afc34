"""What the command line can do, one module for each command. Each returns its exit code."""
