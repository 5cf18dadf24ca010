"""JSON documents: strict reading, and editing that keeps every other byte."""
