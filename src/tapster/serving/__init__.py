"""The data plane: own processes that answer inference, with no database and no web framework.

A plan comes down from the control plane and is kept on disk; usage goes up. Nothing here needs
the control plane to be alive: a worker starts, and goes on, from the last good plan.
"""
