"""What was used, and what it costs: append-only lines, prices with tiers, invoices.

Counts arrive as totals, so whatever is sent twice counts once; the sum of the lines is the bill.
"""
