"""Who did what: an append-only, hash-chained record of every change and every refused attempt.

A change's line is written in the change's own transaction; nothing of it can be altered unseen.
"""
