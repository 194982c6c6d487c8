"""Reports: what is said of a paragraph, a set or the findings (`content`), and how it is written down (`as_*`)."""
