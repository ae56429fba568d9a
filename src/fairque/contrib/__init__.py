"""fairque inside other frameworks. Each module needs an extra of its own and is imported by nothing else."""
