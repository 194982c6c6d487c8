"""The terminal program: command line and explorer. It never imports torch, transformers or datasets."""
