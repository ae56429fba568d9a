"""What users type: a file for each group of commands."""
