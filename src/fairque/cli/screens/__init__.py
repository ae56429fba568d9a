"""What is drawn: tables, live views, plots."""
