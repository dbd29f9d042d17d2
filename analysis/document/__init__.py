"""Documents: sections, tables, figures, the page and the PDF."""
