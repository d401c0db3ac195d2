"""A source -> a dataset of LMDB shards."""
