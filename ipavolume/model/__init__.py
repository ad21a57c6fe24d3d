"""The nouns as data. Imports nothing but errors."""
