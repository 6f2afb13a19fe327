"""Model versions: which packages there are, what they are called, where they came from.

Rows point at sealed packages by digest; a version's content never changes and its number is never
given to another.
"""
