"""One module per command; each imports its program only when it runs."""
