"""Transfer syntaxes: the one table of them, the layout of frames, and how frames are decoded and encoded."""
