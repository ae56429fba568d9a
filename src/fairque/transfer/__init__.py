"""A user carried elsewhere: everything that it has, as a stream of records, and back."""
