"""Images that differ from those a network was trained on, and networks that adapt to them."""
