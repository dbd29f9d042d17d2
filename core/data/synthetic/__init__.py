"""Pictures that labtune draws: birds, and scenes of several objects."""
