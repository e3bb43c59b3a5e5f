"""The report of benchmark files that people look at: one HTML file, and its plots as SVG files."""
