"""A dataset's manifest -> a verdict."""
