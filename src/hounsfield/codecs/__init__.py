"""Transfer syntaxes: the one table of them, and the layout of frames."""
