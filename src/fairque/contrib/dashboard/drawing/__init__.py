"""Charts, drawn on the server as SVG. None of them stands alone: a table beside each says the same."""
