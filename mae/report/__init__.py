"""What the pipeline found, for people: pictures, one self-contained page and a model card."""
