"""Images and labels: folders, archives, decoding, batches, and what labtune draws itself."""
