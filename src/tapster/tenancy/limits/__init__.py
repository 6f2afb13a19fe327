"""How much a tenant may use: limits, the grants that machines spend, and quotas kept here.

What is given away is never more than a limit allows, whoever dies and whichever clock jumps.
"""
