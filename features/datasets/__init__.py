"""Readers of caption files, of features computed elsewhere, and the scenes that the project draws itself."""
