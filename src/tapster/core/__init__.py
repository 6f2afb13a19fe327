"""Mechanism without nouns: settings, database, blobs, signatures, plug-ins, processes, logs.

Knows nothing of datasets, models or endpoints; imports only the contract.
"""
