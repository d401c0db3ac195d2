"""The one training loop, driven by a Task; everything that learns goes through it."""
