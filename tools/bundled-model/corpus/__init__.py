"""The training corpus, made by our own generator from a seed; one module per kind of text, `mixture` puts them together."""
