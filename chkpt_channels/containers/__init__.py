"""Byte grammars that know nothing of tensors."""
