"""The encoder as a small HTTP service: embed, classify, search, and what an operator needs."""
