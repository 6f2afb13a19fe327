"""Questions to the ledger: who used what, what it comes to, whether the sums are right."""
