"""The language every part of Tapster speaks: errors, nouns, tensors, packages, plans.

Pure data and total functions. No framework, no I/O, no import of any other Tapster package.
"""
