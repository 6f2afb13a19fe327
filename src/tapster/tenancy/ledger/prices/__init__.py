"""What calls, job time and storage cost, and since when. Old prices are kept: lines name them."""
