"""Zip archives: members by their spans, and editing that keeps every other member."""
