"""Side-by-side measurements of planish and other tools; see README.md."""
