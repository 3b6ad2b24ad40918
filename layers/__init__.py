"""Layers that branches are built of: heads behind a feature, and poolings over positions or words."""
