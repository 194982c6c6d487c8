"""Where paragraphs come from."""
