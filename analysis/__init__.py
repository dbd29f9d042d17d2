"""Tables, figures and reports from finished results; needs neither Ray nor the data."""
