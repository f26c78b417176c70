"""A study as a page, as Markdown and as one figure: data in, text out."""
