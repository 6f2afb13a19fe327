"""Sessions: how members sign in, and the tokens that say that they did.

Guessing is slow; who is unknown is answered like whose password is wrong, and as late.
"""
