"""The pages, one in each file."""
